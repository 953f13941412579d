"""Functions of some lines: two rules that meet, or a structure to walk."""
# ruff: noqa: E501 (programs as text)

from treewright.envs.code.problem import Problem

MEDIUM = (
    Problem(
        "roman(n)",
        "the Roman numeral of n, 1 to 3999",
        "def roman(n):\n    table = [(1000, 'M'), (900, 'CM'), (500, 'D'), (400, 'CD'), (100, 'C'), (90, 'XC'),\n"
        "             (50, 'L'), (40, 'XL'), (10, 'X'), (9, 'IX'), (5, 'V'), (4, 'IV'), (1, 'I')]\n    out = ''\n"
        "    for value, mark in table:\n        while n >= value:\n            out += mark\n            n -= value\n"
        "    return out\n",
        {"roman(3)": "'III'", "roman(14)": "'XIV'"},
        ("roman(1)", "roman(49)", "roman(944)", "roman(1990)", "roman(3999)", "roman(400)"),
    ),
    Problem(
        "unroman(text)",
        "the value of a Roman numeral in upper case",
        "def unroman(text):\n    value = {'I': 1, 'V': 5, 'X': 10, 'L': 50, 'C': 100, 'D': 500, 'M': 1000}\n"
        "    total = 0\n    for i in range(len(text)):\n        here = value[text[i]]\n"
        "        if i + 1 < len(text) and value[text[i + 1]] > here:\n            total -= here\n        else:\n"
        "            total += here\n    return total\n",
        {"unroman('VI')": "6", "unroman('IV')": "4"},
        ("unroman('I')", "unroman('MCMXC')", "unroman('XLIX')", "unroman('MMXXVI')", "unroman('CD')"),
    ),
    Problem(
        "balanced(text)",
        "True if the brackets ()[]{} in the text are closed in the right order; other letters do not matter",
        "def balanced(text):\n    pairs = {')': '(', ']': '[', '}': '{'}\n    stack = []\n    for c in text:\n"
        "        if c in '([{':\n            stack.append(c)\n        elif c in pairs:\n"
        "            if not stack or stack.pop() != pairs[c]:\n                return False\n    return not stack\n",
        {"balanced('(a[b])')": "True", "balanced('(]')": "False"},
        ("balanced('')", "balanced('(')", "balanced(')')", "balanced('([)]')", "balanced('{x}(y)[z]')"),
    ),
    Problem(
        "merge_intervals(pairs)",
        "overlapping or touching intervals [a, b] joined, as a sorted list of lists",
        "def merge_intervals(pairs):\n    out = []\n    for a, b in sorted(pairs):\n"
        "        if out and a <= out[-1][1]:\n            out[-1][1] = max(out[-1][1], b)\n        else:\n"
        "            out.append([a, b])\n    return out\n",
        {"merge_intervals([[1, 3], [2, 5]])": "[[1, 5]]", "merge_intervals([[4, 5], [1, 2]])": "[[1, 2], [4, 5]]"},
        (
            "merge_intervals([])",
            "merge_intervals([[1, 2], [2, 3]])",
            "merge_intervals([[1, 9], [2, 3]])",
            "merge_intervals([[5, 6], [1, 9], [10, 12]])",
            "merge_intervals([[1, 4], [2, 6], [5, 8]])",
        ),
    ),
    Problem(
        "run_length(text)",
        "runs of equal letters as letter and count, 'aab' gives 'a2b1'",
        "def run_length(text):\n    out = ''\n    i = 0\n    while i < len(text):\n        j = i\n"
        "        while j < len(text) and text[j] == text[i]:\n            j += 1\n        out += text[i] + str(j - i)\n"
        "        i = j\n    return out\n",
        {"run_length('aab')": "'a2b1'"},
        ("run_length('')", "run_length('a')", "run_length('aaaaaaaaaaaa')", "run_length('abba')", "run_length('aAa')"),
    ),
    Problem(
        "transpose(rows)",
        "rows and columns exchanged; missing places at the end of short rows are None",
        "def transpose(rows):\n    width = max([len(row) for row in rows], default=0)\n    out = []\n"
        "    for i in range(width):\n        out.append([row[i] if i < len(row) else None for row in rows])\n"
        "    return out\n",
        {"transpose([[1, 2], [3, 4]])": "[[1, 3], [2, 4]]"},
        ("transpose([])", "transpose([[1], [2, 3]])", "transpose([[1, 2, 3]])", "transpose([[], [1]])"),
    ),
    Problem(
        "flatten(items)",
        "all that is in nested lists, in order, in one list; tuples stay as they are",
        "def flatten(items):\n    out = []\n    for item in items:\n        if isinstance(item, list):\n"
        "            out += flatten(item)\n        else:\n            out.append(item)\n    return out\n",
        {"flatten([1, [2, [3]]])": "[1, 2, 3]"},
        ("flatten([])", "flatten([[[]]])", "flatten([(1, 2), [3]])", "flatten(['ab', ['c']])"),
    ),
    Problem(
        "primes_below(n)",
        "all prime numbers below n",
        "def primes_below(n):\n    out = []\n    for x in range(2, n):\n        prime = True\n        for p in out:\n"
        "            if p * p > x:\n                break\n            if x % p == 0:\n                prime = False\n"
        "                break\n        if prime:\n            out.append(x)\n    return out\n",
        {"primes_below(10)": "[2, 3, 5, 7]"},
        ("primes_below(0)", "primes_below(2)", "primes_below(3)", "primes_below(50)", "primes_below(122)[-1]"),
    ),
    Problem(
        "to_base(n, base)",
        "n in the given base (2 to 16) with digits 0-9a-f, with a minus sign if n is negative",
        "def to_base(n, base):\n    if n == 0:\n        return '0'\n    sign = '-' if n < 0 else ''\n    n = abs(n)\n"
        "    out = ''\n    while n > 0:\n        out = '0123456789abcdef'[n % base] + out\n        n //= base\n"
        "    return sign + out\n",
        {"to_base(5, 2)": "'101'", "to_base(255, 16)": "'ff'"},
        ("to_base(0, 2)", "to_base(-10, 3)", "to_base(16, 16)", "to_base(1, 10)", "to_base(-255, 16)"),
    ),
    Problem(
        "common_prefix(words)",
        "the longest beginning that all words share",
        "def common_prefix(words):\n    if not words:\n        return ''\n    first = words[0]\n"
        "    for i in range(len(first)):\n        for word in words:\n            if i >= len(word) or word[i] != first[i]:\n"
        "                return first[:i]\n    return first\n",
        {"common_prefix(['flow', 'flat'])": "'fl'"},
        (
            "common_prefix([])",
            "common_prefix(['a', ''])",
            "common_prefix(['same', 'same'])",
            "common_prefix(['ab', 'a'])",
            "common_prefix(['x', 'y'])",
        ),
    ),
    Problem(
        "two_sum(numbers, target)",
        "the first pair of places (i, j), i < j, smallest j first and then smallest i, whose numbers add up to "
        "target; None if there is none",
        "def two_sum(numbers, target):\n    for j in range(len(numbers)):\n        for i in range(j):\n"
        "            if numbers[i] + numbers[j] == target:\n                return (i, j)\n    return None\n",
        {"two_sum([1, 2, 3], 5)": "(1, 2)"},
        (
            "two_sum([], 0)",
            "two_sum([3], 6)",
            "two_sum([3, 3], 6)",
            "two_sum([1, 4, 2, 3], 5)",
            "two_sum([0, 0, 0], 0)",
        ),
    ),
    Problem(
        "spiral(rows)",
        "the numbers of a rectangle in the order of a spiral: right, down, left, up, inwards",
        "def spiral(rows):\n    rows = [list(row) for row in rows]\n    out = []\n    while rows:\n"
        "        out += rows.pop(0)\n        rows = [list(row) for row in zip(*rows)][::-1]\n    return out\n",
        {"spiral([[1, 2], [3, 4]])": "[1, 2, 4, 3]"},
        ("spiral([])", "spiral([[1, 2, 3]])", "spiral([[1], [2], [3]])", "spiral([[1, 2, 3], [4, 5, 6], [7, 8, 9]])"),
    ),
    Problem(
        "parse_pairs(text)",
        "'a=1;b=2' as a dictionary of texts; spaces around names and values do not count, parts without '=' are "
        "left out, and the last of equal names holds",
        "def parse_pairs(text):\n    out = {}\n    for part in text.split(';'):\n        if '=' in part:\n"
        "            name, value = part.split('=', 1)\n            out[name.strip()] = value.strip()\n    return out\n",
        {"parse_pairs('a=1;b=2')": "{'a': '1', 'b': '2'}"},
        ("parse_pairs('')", "parse_pairs(' a = 1 ; x')", "parse_pairs('a=1;a=2')", "parse_pairs('a=b=c')"),
    ),
    Problem(
        "bucket(numbers, width)",
        "how many numbers fall into each bucket of that width: start of the bucket → count, also for negatives",
        "def bucket(numbers, width):\n    out = {}\n    for x in numbers:\n        start = x // width * width\n"
        "        out[start] = out.get(start, 0) + 1\n    return out\n",
        {"bucket([1, 2, 11], 10)": "{0: 2, 10: 1}"},
        ("bucket([], 5)", "bucket([-1], 10)", "bucket([10, 20], 10)", "bucket([0, 4, 5], 5)"),
    ),
    Problem(
        "seconds(text)",
        "'1h2m3s' in seconds; parts may be missing but keep their order; None if the text is anything else",
        "def seconds(text):\n    import re\n    found = re.fullmatch(r'(?:(\\d+)h)?(?:(\\d+)m)?(?:(\\d+)s)?', text)\n"
        "    if not text or found is None:\n        return None\n    h, m, s = [int(g or 0) for g in found.groups()]\n"
        "    return h * 3600 + m * 60 + s\n",
        {"seconds('1h2m3s')": "3723", "seconds('5m')": "300"},
        ("seconds('')", "seconds('2h')", "seconds('3s2m')", "seconds('10')", "seconds('1h5s')", "seconds('0s')"),
    ),
)
