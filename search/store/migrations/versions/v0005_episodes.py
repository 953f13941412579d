"""Schema 5: what a committed action gave and whether it ended its episode, so that a killed episode goes on from it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("journal", sa.Column("reward", sa.Double))
    op.add_column("journal", sa.Column("over", sa.Boolean))
    op.add_column("runs", sa.Column("ended", sa.Double))
    op.execute("UPDATE runs SET ended = created")  # episodes of older versions were not gone on with
