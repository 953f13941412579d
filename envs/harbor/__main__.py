"""`python -m treewright.envs.harbor FOLDER`: does each task's own solution get 1, and doing nothing less?"""

import sys

from treewright.envs.errors import TreewrightError
from treewright.envs.harbor.suite import main

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("write python -m treewright.envs.harbor FOLDER, or FOLDER?engine=buildah")
    try:
        sys.exit(main(sys.argv[1]))
    except TreewrightError as error:
        sys.exit(str(error))
