"""Schema 3: what a draw hid and cost, and its own share, so that a completion comes back as it was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("drawn_share", sa.Double))
    op.add_column("nodes", sa.Column("hidden", sa.Integer, nullable=False, server_default="0"))
    op.add_column("nodes", sa.Column("money", sa.Double, server_default="0.0"))
