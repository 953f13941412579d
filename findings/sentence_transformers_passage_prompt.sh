#!/bin/bash
# sentence-transformers: encode_document takes the prompt "document", else "passage", else "corpus", its documentation
# says. Loading a model adds empty "query" and "document" prompts, so a folder that names "query" and "passage" (as E5
# does) has its queries prompted and its passages not.
set -eu
home=$(mktemp -d); trap 'rm -rf "$home"' EXIT; cd "$home"
python3 -m venv v >/dev/null
v/bin/pip -q install "torch==2.13.0" "sentence-transformers==6.2.0" "transformers==5.19.0" 2>/dev/null
cat > try.py <<'PY'
import json, numpy as np, sentence_transformers, torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "passage", "cat"]
t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]")); t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained("base")
torch.manual_seed(0)
BertModel(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained("base")
SentenceTransformer(modules=[Transformer("base"), Pooling(16)], device="cpu").save("e5")
path = "e5/config_sentence_transformers.json"
told = json.load(open(path)); told["prompts"] = {"query": "query: ", "passage": "passage: "}; json.dump(told, open(path, "w"))
m = SentenceTransformer("e5", device="cpu")
same = lambda a, b: bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))
document, bare, passage = m.encode_document(["cat"]), m.encode(["cat"]), m.encode(["cat"], prompt_name="passage")
print("sentence-transformers", sentence_transformers.__version__, "prompts after loading:", m.prompts)
print("encode_document equals no prompt:", same(document, bare), "| equals the passage prompt:", same(document, passage))
raise SystemExit(0 if same(document, bare) and not same(document, passage) else 1)
PY
v/bin/python try.py 2>/dev/null
