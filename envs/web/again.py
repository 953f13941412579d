"""Elements found again on a page that was drawn anew: by role, name and place, as people find them."""

from __future__ import annotations

from difflib import SequenceMatcher

from treewright.envs.web.view import Element, PageView

__all__ = ["found_again"]


def found_again(old: PageView, new: PageView) -> dict[str, str]:
    """References of `old` → those of the same elements in `new`; what is there no more is left out.

    Elements are the same if role, name and document agree and they stand between the same others; where as many of
    the same roles stand between two that were found, a changed name makes no difference.
    """
    before, after = list(old.elements.values()), list(new.elements.values())
    a, b = [_key(e) for e in before], [_key(e) for e in after]
    pairs: dict[str, str] = {}
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        roles = [e.role for e in before[i:j]] == [e.role for e in after[k:m]]
        if kind == "equal" or (kind == "replace" and roles):
            pairs |= {old_one.ref: new_one.ref for old_one, new_one in zip(before[i:j], after[k:m], strict=True)}
    for one in before:  # what has moved is known by a name that nobody else has
        same = [other for other in after if _key(other) == _key(one)]
        if one.ref not in pairs and len(same) == 1 and a.count(_key(one)) == 1:
            pairs[one.ref] = same[0].ref
    return pairs


def _key(element: Element) -> tuple[str, str, int]:
    return element.role, element.name, element.frame
