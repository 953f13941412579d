"""The bazaar's pages: a catalogue with facets, cart and checkout, orders, a forum, and a desk for refunds."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from starlette.requests import Request
from starlette.routing import Route

from treewright.envs.web.bazaar_world import ADDRESSES, COLOURS, PENDING, SIZES, World, item_of
from treewright.envs.web.market_site import Change, Page, Site, site_routes
from treewright.envs.web.market_world import ME, OPEN

__all__ = ["bazaar_routes"]

SHELF = 8  # products on one page of the catalogue
_FRAME = """<!doctype html><html lang="en"><title>bazaar</title><body><nav><a href="/">home</a> \
<a href="/shop">shop</a> <a href="/cart">cart {cart}</a> <a href="/orders">orders</a> <a href="/forum">forum</a> \
<a href="/desk">desk</a></nav>{body}</body></html>"""


def _home(world: World, request: Request) -> str:
    return "<h1>bazaar</h1>" + _list(f'<a href="/shop?kind={kind}">{kind}</a>' for kind in world.kinds())


def _shop(world: World, request: Request) -> str:
    asked = request.query_params
    found = [
        p
        for p in world.products.values()
        if all(asked.get(name, "") in ("", getattr(p, name)) for name in ("kind", "colour", "size"))
    ]
    if asked.get("sort") == "price":
        found.sort(key=lambda p: p.price)
    page = max(1, int(asked.get("page", "1"))) if asked.get("page", "1").isdigit() else 1
    facets = {"kind": world.kinds(), "colour": COLOURS, "size": SIZES, "sort": ("price",)}
    lists = "".join(_choice(name, ["", *options], asked.get(name, "")) for name, options in facets.items())
    shelf = _list(
        f'<a href="/p/{item_of(p)}">{p.name}</a> price {p.price}' for p in found[SHELF * (page - 1) : SHELF * page]
    )
    kept = "&amp;".join(f"{name}={escape(asked[name])}" for name in facets if asked.get(name))
    more = f'<a href="/shop?{kept}&amp;page={page + 1}">more</a>' if len(found) > SHELF * page else ""
    return f'<form action="/shop">{lists}<button>show</button></form><p>found {len(found)}</p>{shelf}{more}'


def _product(world: World, request: Request) -> str | None:
    item = request.path_params["name"]
    product = world.products.get(item)
    if product is None:
        return None
    return (
        f"<h1>{product.name}</h1><p>price {product.price}</p><p>stock {product.stock}</p>"
        f'<form method="post" action="/cart/add"><input type="hidden" name="item" value="{item}">'
        f"{_choice('pieces', ['1', '2', '3'], '1')}<button>add to cart</button></form>"
    )


def _cart(world: World, request: Request) -> str:
    if not world.cart:
        return "<h1>cart</h1><p>empty</p>"
    lines = _list(
        f"{_pieces(world, {item: n})} {_button('/cart/remove', 'remove', item=item)}" for item, n in world.cart.items()
    )
    return f'<h1>cart</h1>{lines}<a href="/checkout">checkout</a>'


def _checkout(world: World, request: Request) -> str:
    if not world.cart:
        return "<h1>checkout</h1><p>the cart is empty</p>"
    coins = sum(world.products[item].price * n for item, n in world.cart.items())
    return (
        f"<h1>checkout</h1><p>{_pieces(world, world.cart)}</p><p>{coins} coins</p>"
        f'<form method="post" action="/order">{_choice("to", ADDRESSES, ADDRESSES[0])}'
        "<button>place order</button></form>"
    )


def _orders(world: World, request: Request) -> str:
    lines = (
        f'<a href="/o/{n}">order {n}</a> {_pieces(world, order.lines)}, {order.status}'
        for n, order in world.orders.items()
    )
    return f"<h1>orders</h1>{_list(lines)}"


def _order(world: World, request: Request) -> str | None:
    number = request.path_params["name"]
    order = world.orders.get(number)
    if order is None:
        return None
    button = _button(f"/o/{number}/cancel", "cancel") if order.status == OPEN else ""
    return (
        f"<h1>order {number}</h1><p>{_pieces(world, order.lines)}</p><p>to {order.to}</p><p>{order.status}</p>{button}"
    )


def _forum(world: World, request: Request) -> str:
    posts = _list(
        f'<a href="/f/{n}">{escape(post.title)}</a> {len(post.replies)} replies' for n, post in world.posts.items()
    )
    form = '<form method="post" action="/forum"><input name="text" aria-label="title"><button>post</button></form>'
    return f"<h1>forum</h1>{posts}{form}"


def _post(world: World, request: Request) -> str | None:
    number = request.path_params["name"]
    post = world.posts.get(number)
    if post is None:
        return None
    button = _button(f"/f/{number}/delete", "delete") if post.author == ME else ""
    said = _list(f"{author}: {escape(text)}" for author, text in post.replies)
    form = (
        f'<form method="post" action="/f/{number}/reply"><input name="text" aria-label="reply">'
        "<button>send</button></form>"
    )
    return f"<h1>{escape(post.title)}</h1><p>by {post.author}</p>{said}{form}{button}"


def _desk(world: World, request: Request) -> str:
    lines = (
        f'<a href="/r/{n}">refund {n}</a> {r.customer}, {r.coins} coins, {r.status}' for n, r in world.requests.items()
    )
    return f"<h1>refunds</h1>{_list(lines)}"


def _request(world: World, request: Request) -> str | None:
    number = request.path_params["name"]
    found = world.requests.get(number)
    if found is None:
        return None
    buttons = "".join(_button(f"/r/{number}/{word}", word) for word in ("approve", "reject"))
    shown = buttons if found.status == PENDING else ""
    return f"<h1>refund {number}</h1><p>{found.customer}, {found.coins} coins</p><p>{found.status}</p>{shown}"


def _refused(world: World, request: Request) -> str:
    return f"<h1>refused</h1><p>{escape(request.query_params.get('why', ''))}</p>"


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _choice(name: str, options: Iterable[str], chosen: str) -> str:
    shown = "".join(f'<option value="{o}"{" selected" if o == chosen else ""}>{o or "any"}</option>' for o in options)
    return f'<select name="{name}" aria-label="{name}">{shown}</select>'


def _pieces(world: World, lines: dict[str, int]) -> str:
    return ", ".join(f"{pieces} {world.products[item].name}" for item, pieces in lines.items())


def _button(action: str, name: str, **hidden: str) -> str:
    fields = "".join(f'<input type="hidden" name="{key}" value="{value}">' for key, value in hidden.items())
    return f'<form method="post" action="{action}">{fields}<button>{name}</button></form>'


# Changes: each answers where to go next.


def _add(world: World, form: dict[str, str], number: str) -> str:
    world.put_in_cart(form.get("item", ""), int(form.get("pieces", "1")))
    return "/cart"


def _remove(world: World, form: dict[str, str], number: str) -> str:
    world.take_from_cart(form.get("item", ""))
    return "/cart"


def _place(world: World, form: dict[str, str], number: str) -> str:
    return f"/o/{world.order(form.get('to', ''))}"


def _cancel(world: World, form: dict[str, str], number: str) -> str:
    world.cancel(number)
    return f"/o/{number}"


def _write(world: World, form: dict[str, str], number: str) -> str:
    return f"/f/{world.write_post(form.get('text', ''))}"


def _reply(world: World, form: dict[str, str], number: str) -> str:
    world.reply(number, form.get("text", ""))
    return f"/f/{number}"


def _delete(world: World, form: dict[str, str], number: str) -> str:
    world.delete_post(number)
    return "/forum"


def _approve(world: World, form: dict[str, str], number: str) -> str:
    world.decide(number, True)
    return "/desk"


def _reject(world: World, form: dict[str, str], number: str) -> str:
    world.decide(number, False)
    return "/desk"


def bazaar_routes(site: Site) -> list[Route]:
    pages: dict[str, Page] = {
        **{"/": _home, "/shop": _shop, "/p/{name}": _product, "/cart": _cart, "/checkout": _checkout},
        **{"/orders": _orders, "/o/{name}": _order, "/forum": _forum, "/f/{name}": _post},
        **{"/desk": _desk, "/r/{name}": _request, "/refused": _refused},
    }
    changes: dict[str, tuple[str, Change]] = {
        "/cart/add": ("add", _add),
        "/cart/remove": ("remove", _remove),
        "/order": ("order", _place),
        "/o/{name}/cancel": ("cancel", _cancel),
        "/forum": ("post", _write),
        "/f/{name}/reply": ("reply", _reply),
        "/f/{name}/delete": ("delete", _delete),
        "/r/{name}/approve": ("approve", _approve),
        "/r/{name}/reject": ("reject", _reject),
    }
    return site_routes(site, _FRAME, pages, changes, refused="/refused")
