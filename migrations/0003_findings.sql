-- What explains a lock, what else was found, and whose look-ups Meta refuses or throttles.

alter table incidents
    -- What its first evidence was: failure, error (of the account, without a message), or event (a
    -- ban).
    add column opened_by        text not null default 'failure',
    -- stated: Meta blocks an entity, or names the state of the account. inferred: less than that.
    add column cause_confidence text,
    -- account, or number if the cause is that of single numbers.
    add column cause_scope      text,
    -- Why the look-up is refused, where that is the cause.
    add column denial           text,
    -- When a person opened it again: what Meta announced before does not end it.
    add column reopened_at      timestamptz;

alter table affected_numbers
    -- What its checks have shown: what explained the lock at any time, and what else the latest one
    -- found. Written by us.
    add column findings        jsonb,
    -- When the fields beside the health were read.
    add column fields_read_at  timestamptz,
    -- The codes of its failed messages that name a reason.
    add column error_codes     integer[] not null default '{}',
    -- The latest message that was sent after its last failure.
    add column sent_at         timestamptz;

alter table health_checks
    -- Why Meta refused to answer.
    add column denial text,
    -- The token that asked, as the first half of a hash: the hourly budget counts by token.
    add column token  text,
    -- The fields beside the health, written by us.
    add column fields jsonb,
    -- The calls to Graph that it took.
    add column calls  smallint not null default 1;

alter table accounts
    -- Who gave the name: meta, or a person.
    add column named_by       text,
    add column portfolio_id   text,
    add column portfolio_name text,
    -- When its fields were read.
    add column fields_read_at timestamptz,
    -- Why Meta refuses this account's look-ups, to which token, and when one number is tried again
    -- for all of them.
    add column denial         text,
    add column denied_token   text,
    add column denied_until   timestamptz;

-- Meta throttles an account, a user (by the token), or an app (by its secret, hashed as well).
create table graph_limits (
    scope text        not null,
    key   text        not null,
    until timestamptz not null,
    primary key (scope, key)
);

comment on table graph_limits is 'Until when Meta throttles look-ups';

-- Callbacks about the account itself, not about a message.
create table account_events (
    id          bigint generated always as identity,
    waba_id     text        not null,
    field       text        not null,
    event       text        not null,
    state       text,
    detail      text,
    expires_at  timestamptz,
    -- The kind of incident that it is evidence of by itself: an error of the account, or a ban.
    evidence_of text,
    occurred_at timestamptz not null,
    received_at timestamptz not null,
    -- SHA-256 over what identifies it. Meta's repeats come within seven days; later it is another.
    digest      bytea       not null,
    capture_id  bigint,
    primary key (id, waba_id)
);

comment on table account_events is 'What Meta reported about an account itself; kept like incidents';

create index account_events_by_digest on account_events (waba_id, digest, received_at);
-- The notices around an incident.
create index account_events_by_time on account_events (waba_id, occurred_at);
