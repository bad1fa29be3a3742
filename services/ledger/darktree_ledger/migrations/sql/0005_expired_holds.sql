-- How many holds expired of late, without a look at all that ever did.
CREATE INDEX hold_expired ON ledger.hold (resolved_at) WHERE state = 'expired';
