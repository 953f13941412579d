#!/bin/bash
# reasoning-gym makes entry i of a dataset from seed + i: a training set with seed 1 and a test set with seed 2 are the same
# entries, shifted by one, and all but one test item was trained on. Seeds must be further apart than the sets are long.
# Exits 1 if that changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv v; v/bin/python -m pip install -q reasoning-gym==0.1.25 2> /dev/null
cat > t.py <<'P'
import sys
import reasoning_gym
def questions(seed):
    return [reasoning_gym.create_dataset("countdown", seed=seed, size=50)[i]["question"] for i in range(50)]
one, two, far = questions(1), questions(2), questions(1001)
print("seeds 1 and 2:    ", len(set(one) & set(two)), "of 50 questions are the same")
print("seeds 1 and 1001: ", len(set(one) & set(far)), "of 50 questions are the same")
sys.exit(one[1:] != two[:-1] or bool(set(one) & set(far)))
P
v/bin/python t.py
