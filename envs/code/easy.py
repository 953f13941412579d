"""Short functions: one loop, one rule, one trap."""
# ruff: noqa: E501 (programs as text)

from treewright.envs.code.problem import Problem

EASY = (
    Problem(
        "median(numbers)",
        "the middle of the sorted numbers as a float; the mean of the two middle ones if their count is even; "
        "None for an empty list",
        "def median(numbers):\n    if not numbers:\n        return None\n    s = sorted(numbers)\n    n = len(s)\n"
        "    if n % 2 == 1:\n        return float(s[n // 2])\n    return (s[n // 2 - 1] + s[n // 2]) / 2\n",
        {"median([3, 1, 2])": "2.0", "median([4, 1])": "2.5"},
        ("median([])", "median([7])", "median([1, 2, 3, 10])", "median([-5, -1, 0, 4, 4])", "median([2, 2, 2, 2])"),
    ),
    Problem(
        "is_leap(year)",
        "True for leap years of the Gregorian calendar",
        "def is_leap(year):\n    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n",
        {"is_leap(2024)": "True", "is_leap(2023)": "False"},
        ("is_leap(1900)", "is_leap(2000)", "is_leap(2100)", "is_leap(1996)", "is_leap(1)"),
    ),
    Problem(
        "rotate(items, k)",
        "a new list rotated to the right by k places; k may be negative or longer than the list",
        "def rotate(items, k):\n    if not items:\n        return []\n    k = k % len(items)\n"
        "    return items[len(items) - k:] + items[:len(items) - k]\n",
        {"rotate([1, 2, 3], 1)": "[3, 1, 2]", "rotate([1, 2], 0)": "[1, 2]"},
        ("rotate([], 3)", "rotate([1, 2, 3], -1)", "rotate([1, 2, 3], 7)", "rotate([1, 2, 3], 3)", "rotate([9], 5)"),
    ),
    Problem(
        "digits_sum(n)",
        "the sum of the decimal digits of an integer, whatever its sign",
        "def digits_sum(n):\n    n = abs(n)\n    total = 0\n    while n > 0:\n        total += n % 10\n        n //= 10\n"
        "    return total\n",
        {"digits_sum(123)": "6", "digits_sum(5)": "5"},
        ("digits_sum(0)", "digits_sum(-45)", "digits_sum(1000)", "digits_sum(99999)", "digits_sum(-7)"),
    ),
    Problem(
        "count_words(text)",
        "how often each word occurs; words are split at white space and compared in lower case",
        "def count_words(text):\n    out = {}\n    for word in text.lower().split():\n"
        "        out[word] = out.get(word, 0) + 1\n    return out\n",
        {"count_words('a b a')": "{'a': 2, 'b': 1}"},
        ("count_words('')", "count_words('A a  a')", "count_words('x\\ny\\tx')", "count_words(' one ')"),
    ),
    Problem(
        "clamp(x, low, high)",
        "x held between low and high; if low is above high they change places",
        "def clamp(x, low, high):\n    if low > high:\n        low, high = high, low\n    return max(low, min(x, high))\n",
        {"clamp(5, 1, 3)": "3", "clamp(2, 1, 3)": "2"},
        ("clamp(0, 1, 3)", "clamp(5, 3, 1)", "clamp(1, 1, 1)", "clamp(-9, -3, -5)", "clamp(3, 1, 3)"),
    ),
    Problem(
        "dedupe(items)",
        "the items without repetitions, in the order of their first occurrence; items may be lists",
        "def dedupe(items):\n    out = []\n    for item in items:\n        if item not in out:\n"
        "            out.append(item)\n    return out\n",
        {"dedupe([1, 2, 1])": "[1, 2]"},
        ("dedupe([])", "dedupe([[1], [1], [2]])", "dedupe(['b', 'a', 'b', 'a'])", "dedupe([3, 3, 3])"),
    ),
    Problem(
        "vowels(text)",
        "how many of the letters a, e, i, o, u the text has, in either case",
        "def vowels(text):\n    total = 0\n    for letter in text.lower():\n        if letter in 'aeiou':\n"
        "            total += 1\n    return total\n",
        {"vowels('hello')": "2", "vowels('xyz')": "0"},
        ("vowels('')", "vowels('AEIOU')", "vowels('Queue up')", "vowels('rhythm')", "vowels('a1e2')"),
    ),
    Problem(
        "caesar(text, k)",
        "lower-case letters moved k places along the alphabet, around its end; everything else unchanged",
        "def caesar(text, k):\n    out = ''\n    for c in text:\n        if 'a' <= c <= 'z':\n"
        "            out += chr((ord(c) - 97 + k) % 26 + 97)\n        else:\n            out += c\n    return out\n",
        {"caesar('abc', 1)": "'bcd'", "caesar('a b', 2)": "'c d'"},
        ("caesar('xyz', 3)", "caesar('Abc', 1)", "caesar('abc', -1)", "caesar('hello', 52)", "caesar('', 4)"),
    ),
    Problem(
        "second_largest(numbers)",
        "the second largest of the different numbers, or None",
        "def second_largest(numbers):\n    s = sorted(set(numbers))\n    if len(s) < 2:\n        return None\n"
        "    return s[-2]\n",
        {"second_largest([1, 3, 2])": "2"},
        ("second_largest([])", "second_largest([5, 5])", "second_largest([5, 5, 4])", "second_largest([-1, -2])"),
    ),
    Problem(
        "chunks(items, n)",
        "the list cut into lists of n, the last one may be shorter; an empty list for n below 1",
        "def chunks(items, n):\n    if n < 1:\n        return []\n    out = []\n"
        "    for i in range(0, len(items), n):\n        out.append(items[i:i + n])\n    return out\n",
        {"chunks([1, 2, 3, 4], 2)": "[[1, 2], [3, 4]]"},
        ("chunks([1, 2, 3], 2)", "chunks([], 2)", "chunks([1], 0)", "chunks([1, 2, 3], 5)", "chunks([1, 2], -1)"),
    ),
    Problem(
        "is_palindrome(text)",
        "True if the letters and digits of the text, without regard to case, read the same backwards",
        "def is_palindrome(text):\n    kept = [c for c in text.lower() if c.isalnum()]\n    return kept == kept[::-1]\n",
        {"is_palindrome('level')": "True", "is_palindrome('ab')": "False"},
        ("is_palindrome('')", "is_palindrome('A man, a plan')", "is_palindrome('No, on!')", "is_palindrome('1a1')"),
    ),
    Problem(
        "gcd(a, b)",
        "the greatest common divisor of two integers, never negative; gcd(0, 0) is 0",
        "def gcd(a, b):\n    while b != 0:\n        a, b = b, a % b\n    return abs(a)\n",
        {"gcd(12, 18)": "6", "gcd(7, 5)": "1"},
        ("gcd(0, 5)", "gcd(0, 0)", "gcd(-12, 18)", "gcd(12, -18)", "gcd(9, 9)", "gcd(5, 0)"),
    ),
    Problem(
        "running_max(numbers)",
        "the list of the largest number so far at each place",
        "def running_max(numbers):\n    out = []\n    for x in numbers:\n        if out and out[-1] > x:\n"
        "            out.append(out[-1])\n        else:\n            out.append(x)\n    return out\n",
        {"running_max([1, 3, 2])": "[1, 3, 3]"},
        ("running_max([])", "running_max([-3, -5, -1])", "running_max([2, 2])", "running_max([5, 4, 3, 9])"),
    ),
    Problem(
        "title_case(text)",
        "every word, split at single spaces, with its first letter in upper case and the others in lower case",
        "def title_case(text):\n    out = []\n    for word in text.split(' '):\n"
        "        out.append(word[:1].upper() + word[1:].lower())\n    return ' '.join(out)\n",
        {"title_case('hello world')": "'Hello World'"},
        ("title_case('')", "title_case('aBC dE')", "title_case('a  b')", 'title_case("it\'s ok")'),
    ),
    Problem(
        "factorial_zeros(n)",
        "how many zeros stand at the end of n! (n factorial)",
        "def factorial_zeros(n):\n    total = 0\n    while n >= 5:\n        n //= 5\n        total += n\n    return total\n",
        {"factorial_zeros(5)": "1", "factorial_zeros(4)": "0"},
        ("factorial_zeros(0)", "factorial_zeros(25)", "factorial_zeros(100)", "factorial_zeros(24)"),
    ),
)
