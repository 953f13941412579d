"""Functions with a known algorithm in them, or with rules that need care together."""
# ruff: noqa: E501 (programs as text)

from treewright.envs.code.problem import Problem

HARD = (
    Problem(
        "edit_distance(a, b)",
        "how many letters must be inserted, deleted or replaced to make a into b, at least",
        "def edit_distance(a, b):\n    row = list(range(len(b) + 1))\n    for i in range(1, len(a) + 1):\n"
        "        last, row[0] = row[0], i\n        for j in range(1, len(b) + 1):\n"
        "            cost = 0 if a[i - 1] == b[j - 1] else 1\n"
        "            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + cost)\n    return row[-1]\n",
        {"edit_distance('cat', 'cut')": "1", "edit_distance('', 'ab')": "2"},
        (
            "edit_distance('', '')",
            "edit_distance('kitten', 'sitting')",
            "edit_distance('abc', '')",
            "edit_distance('flaw', 'lawn')",
            "edit_distance('same', 'same')",
        ),
    ),
    Problem(
        "longest_rise(numbers)",
        "the length of the longest strictly rising subsequence (not necessarily of neighbours)",
        "def longest_rise(numbers):\n    best = []\n    for i in range(len(numbers)):\n        length = 1\n"
        "        for j in range(i):\n            if numbers[j] < numbers[i]:\n"
        "                length = max(length, best[j] + 1)\n        best.append(length)\n    return max(best, default=0)\n",
        {"longest_rise([3, 1, 2])": "2", "longest_rise([1, 2, 3])": "3"},
        (
            "longest_rise([])",
            "longest_rise([2, 2])",
            "longest_rise([10, 9, 2, 5, 3, 7, 101, 18])",
            "longest_rise([5, 4, 3])",
        ),
    ),
    Problem(
        "knapsack(items, room)",
        "the highest sum of values of items (weight, value) that fit into the room together; each at most once",
        "def knapsack(items, room):\n    best = [0] * (room + 1)\n    for weight, value in items:\n"
        "        for space in range(room, weight - 1, -1):\n"
        "            best[space] = max(best[space], best[space - weight] + value)\n    return best[room]\n",
        {"knapsack([(1, 1), (2, 3)], 2)": "3"},
        (
            "knapsack([], 5)",
            "knapsack([(2, 3), (3, 4), (4, 5)], 5)",
            "knapsack([(1, 2)], 3)",
            "knapsack([(5, 10), (4, 40), (6, 30), (3, 50)], 10)",
            "knapsack([(2, 9)], 1)",
        ),
    ),
    Problem(
        "shortest(graph, start, end)",
        "the least number of steps from start to end along the arrows of a dictionary node → list of nodes; -1 if "
        "there is no way",
        "def shortest(graph, start, end):\n    seen = {start: 0}\n    queue = [start]\n    while queue:\n"
        "        node = queue.pop(0)\n        if node == end:\n            return seen[node]\n"
        "        for other in graph.get(node, []):\n            if other not in seen:\n"
        "                seen[other] = seen[node] + 1\n                queue.append(other)\n    return -1\n",
        {"shortest({'a': ['b'], 'b': ['c']}, 'a', 'c')": "2"},
        (
            "shortest({}, 'a', 'a')",
            "shortest({'a': ['b']}, 'b', 'a')",
            "shortest({1: [2, 3], 2: [4], 3: [4], 4: []}, 1, 4)",
            "shortest({1: [2], 2: [1]}, 1, 3)",
            "shortest({1: [2, 5], 2: [3], 3: [5]}, 1, 5)",
        ),
    ),
    Problem(
        "cheapest(roads, start, end)",
        "the least cost from start to end over two-way roads (a, b, cost); None if there is no way",
        "def cheapest(roads, start, end):\n    import heapq\n    ways = {}\n    for a, b, cost in roads:\n"
        "        ways.setdefault(a, []).append((cost, b))\n        ways.setdefault(b, []).append((cost, a))\n"
        "    heap, done = [(0, start)], set()\n    while heap:\n        total, node = heapq.heappop(heap)\n"
        "        if node == end:\n            return total\n        if node in done:\n            continue\n"
        "        done.add(node)\n        for cost, other in ways.get(node, []):\n"
        "            heapq.heappush(heap, (total + cost, other))\n    return None\n",
        {"cheapest([(1, 2, 5), (2, 3, 1)], 1, 3)": "6"},
        (
            "cheapest([], 1, 1)",
            "cheapest([(1, 2, 9), (1, 3, 2), (3, 2, 3)], 1, 2)",
            "cheapest([(1, 2, 1)], 1, 3)",
            "cheapest([(1, 2, 4)], 2, 1)",
            "cheapest([(1, 2, 1), (2, 3, 1), (1, 3, 3)], 3, 1)",
        ),
    ),
    Problem(
        "islands(rows)",
        "how many groups of '#' touch each other up, down, left or right, in a list of texts",
        "def islands(rows):\n    left = {(i, j) for i, row in enumerate(rows) for j, c in enumerate(row) if c == '#'}\n"
        "    total = 0\n    while left:\n        total += 1\n        stack = [left.pop()]\n        while stack:\n"
        "            i, j = stack.pop()\n"
        "            for other in [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]:\n"
        "                if other in left:\n                    left.remove(other)\n"
        "                    stack.append(other)\n    return total\n",
        {"islands(['#.#'])": "2", "islands(['##', '.#'])": "1"},
        (
            "islands([])",
            "islands(['...'])",
            "islands(['#.', '.#'])",
            "islands(['###', '#.#', '###'])",
            "islands(['#.#.#'])",
        ),
    ),
    Problem(
        "calc(text)",
        "the value of an expression of integers with + - * and brackets, * before + and -; no spaces, no signs",
        "def calc(text):\n    at = 0\n    def atom():\n        nonlocal at\n        if text[at] == '(':\n            at += 1\n"
        "            value = total()\n            at += 1\n            return value\n        start = at\n"
        "        while at < len(text) and text[at].isdigit():\n            at += 1\n        return int(text[start:at])\n"
        "    def product():\n        nonlocal at\n        value = atom()\n        while at < len(text) and text[at] == '*':\n"
        "            at += 1\n            value *= atom()\n        return value\n    def total():\n        nonlocal at\n"
        "        value = product()\n        while at < len(text) and text[at] in '+-':\n            sign = text[at]\n"
        "            at += 1\n            value = value + product() if sign == '+' else value - product()\n"
        "        return value\n    return total()\n",
        {"calc('1+2*3')": "7", "calc('8-2-1')": "5"},
        ("calc('7')", "calc('(1+2)*3')", "calc('2*(3-(4-5))')", "calc('10-2*3-1')", "calc('((12))')"),
    ),
    Problem(
        "topological(edges)",
        "the nodes of arrows (before, after) in an order that respects all arrows, the smallest possible node first; "
        "None if there is a circle",
        "def topological(edges):\n    nodes = {n for edge in edges for n in edge}\n    out = []\n    while nodes:\n"
        "        free = [n for n in nodes if not any(b == n and a in nodes for a, b in edges)]\n        if not free:\n"
        "            return None\n        first = min(free)\n        out.append(first)\n        nodes.remove(first)\n"
        "    return out\n",
        {"topological([(1, 2), (2, 3)])": "[1, 2, 3]"},
        (
            "topological([])",
            "topological([(3, 1), (2, 1)])",
            "topological([(1, 2), (2, 1)])",
            "topological([(5, 2), (4, 2), (4, 1), (2, 3)])",
        ),
    ),
    Problem(
        "justify(words, width)",
        "lines of at most width letters, filled greedily with words and single spaces; every word fits a line",
        "def justify(words, width):\n    out = []\n    line = ''\n    for word in words:\n"
        "        longer = word if not line else line + ' ' + word\n        if len(longer) <= width:\n"
        "            line = longer\n        else:\n            out.append(line)\n            line = word\n"
        "    if line:\n        out.append(line)\n    return out\n",
        {"justify(['a', 'b', 'c'], 3)": "['a b', 'c']"},
        ("justify([], 5)", "justify(['abc'], 3)", "justify(['ab', 'cd', 'e'], 5)", "justify(['ab', 'cd', 'e'], 4)"),
    ),
    Problem(
        "life(cells)",
        "the next generation of Conway's game of life: from a set of living (x, y) to the set of those living next",
        "def life(cells):\n    count = {}\n    for x, y in cells:\n        for dx in (-1, 0, 1):\n"
        "            for dy in (-1, 0, 1):\n                if dx != 0 or dy != 0:\n"
        "                    key = (x + dx, y + dy)\n                    count[key] = count.get(key, 0) + 1\n"
        "    return {c for c, n in count.items() if n == 3 or (n == 2 and c in cells)}\n",
        {"life({(0, 0), (0, 1), (0, 2)}) == {(-1, 1), (0, 1), (1, 1)}": "True"},
        (
            "life(set())",
            "sorted(life({(0, 0), (0, 1), (1, 0)}))",
            "life({(0, 0)})",
            "sorted(life({(0, 0), (0, 1), (1, 0), (1, 1)}))",
            "sorted(life({(1, 0), (2, 1), (0, 2), (1, 2), (2, 2)}))",
        ),
    ),
    Problem(
        "permutations(items)",
        "all different orders of the items as a sorted list of lists",
        "def permutations(items):\n    if not items:\n        return [[]]\n    out = []\n"
        "    for first in sorted(set(items)):\n        rest = list(items)\n        rest.remove(first)\n"
        "        for other in permutations(rest):\n            out.append([first] + other)\n    return out\n",
        {"permutations([2, 1])": "[[1, 2], [2, 1]]"},
        ("permutations([])", "permutations([1, 1])", "permutations([3, 1, 2])", "len(permutations([1, 1, 2, 2]))"),
    ),
    Problem(
        "window_max(numbers, k)",
        "the largest number of each stretch of k neighbours; an empty list if k is below 1 or above the length",
        "def window_max(numbers, k):\n    if k < 1 or k > len(numbers):\n        return []\n    out = []\n"
        "    for i in range(len(numbers) - k + 1):\n        out.append(max(numbers[i:i + k]))\n    return out\n",
        {"window_max([1, 3, 2], 2)": "[3, 3]"},
        (
            "window_max([], 1)",
            "window_max([5], 1)",
            "window_max([4, 3, 2, 1], 3)",
            "window_max([1, 2], 3)",
            "window_max([1, 2], 0)",
        ),
    ),
    Problem(
        "change(coins, total)",
        "in how many ways the coins, each as often as you like, add up to total; order does not matter",
        "def change(coins, total):\n    ways = [1] + [0] * total\n    for coin in coins:\n"
        "        for t in range(coin, total + 1):\n            ways[t] += ways[t - coin]\n    return ways[total]\n",
        {"change([1, 2], 3)": "2", "change([2], 3)": "0"},
        ("change([], 0)", "change([], 4)", "change([1, 2, 5], 5)", "change([3, 5, 7], 15)", "change([2, 4], 8)"),
    ),
)
