-- What the ledger is compared with, in the same database: rows that are only inserted, and pgledger's approach
-- (https://github.com/pgr0ss/pgledger): both accounts locked in order of their ids, one transfer a transaction, two
-- entries with the balances before and after. Written for this comparison; pgledger's own functions do a little more.
CREATE SCHEMA peers;

CREATE TABLE peers.plain (
    entry_id uuid PRIMARY KEY, customer_id text NOT NULL, amount_nanos bigint NOT NULL, prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL, model text NOT NULL, recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON peers.plain (customer_id, recorded_at);

CREATE TABLE peers.account (id integer PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, version bigint NOT NULL DEFAULT 0);
INSERT INTO peers.account (id) SELECT generate_series(0, 1000);

CREATE TABLE peers.transfer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, from_account integer NOT NULL, to_account integer NOT NULL,
    amount bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON peers.transfer (from_account);
CREATE INDEX ON peers.transfer (to_account);

CREATE TABLE peers.entry (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer NOT NULL, transfer bigint NOT NULL,
    amount bigint NOT NULL, balance_before bigint NOT NULL, balance_after bigint NOT NULL, version bigint NOT NULL
);
CREATE INDEX ON peers.entry (account);
CREATE INDEX ON peers.entry (transfer);

CREATE FUNCTION peers.move(from_account integer, to_account integer, amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
    side peers.account;
BEGIN
    PERFORM FROM peers.account a WHERE a.id IN (from_account, to_account) ORDER BY a.id FOR UPDATE;
    INSERT INTO peers.transfer (from_account, to_account, amount) VALUES (from_account, to_account, amount)
    RETURNING id INTO made;
    UPDATE peers.account a SET balance = balance - amount, version = version + 1 WHERE a.id = from_account
    RETURNING * INTO side;
    INSERT INTO peers.entry (account, transfer, amount, balance_before, balance_after, version)
    VALUES (side.id, made, -amount, side.balance + amount, side.balance, side.version);
    UPDATE peers.account a SET balance = balance + amount, version = version + 1 WHERE a.id = to_account
    RETURNING * INTO side;
    INSERT INTO peers.entry (account, transfer, amount, balance_before, balance_after, version)
    VALUES (side.id, made, amount, side.balance - amount, side.balance, side.version);
    RETURN made;
END $$;
