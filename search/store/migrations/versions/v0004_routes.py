"""Schema 4: the experts that a sampler sent the tokens of a draw to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("routes", sa.Text, nullable=False, server_default=""))
