-- What an operation answers. The functions themselves are in `functions/`, which every upgrade applies anew.

CREATE TYPE ledger.result AS (
    "position"         bigint,
    outcome            text,
    reason             text,
    field              text,
    replayed           boolean,
    balance_nanos      bigint,
    held_nanos         bigint,
    cap_tokens         bigint,
    day                date,
    day_tokens         bigint,
    day_held_tokens    bigint,
    reset_seconds      integer,
    completion_tokens  bigint,
    usage_day          date,
    expires_in_seconds double precision,
    entry_id           uuid,
    seq                bigint,
    charged_tokens     bigint,
    absorbed_tokens    bigint,
    amount_nanos       bigint
);
