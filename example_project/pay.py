"""Send payments to the ledger: `python -m example_project.pay 5`."""

from __future__ import annotations

import sys
import time

from sqlalchemy import create_engine, text

from example_project.shop import DATABASE_URL, ledger


def main(count: int) -> None:
    """Send `count` payments, with numbers that nobody has used."""
    engine = create_engine(DATABASE_URL)
    with engine.begin() as connection:
        connection.execute(
            text("create table if not exists payment (id bigint primary key, cents integer, token bigint)")
        )
    engine.dispose()
    first = int(time.time())
    for payment in range(first, first + count):
        ledger.delay(payment, 1999)
    print(f"sent {count} payments, {first} to {first + count - 1}")  # a program's answer


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
