-- Callbacks byte for byte: what is to be processed, and what is kept for replay.
--
-- An append needs no lookup and no constraint but the ids. Nothing refers to a capture by a foreign
-- key: a capture may leave after its time while an incident stays.

create table captures (
    id          bigint generated always as identity primary key,
    received_at timestamptz not null,
    -- As Meta signed it. Written as JSON again it would have another signature.
    body        bytea       not null,
    -- X-Hub-Signature-256 as it came, and the position of the app secret that matched it, from 1.
    signature   text,
    app_secret  integer
);

comment on table captures is 'A log of callbacks, kept byte for byte; the same body twice is two rows';

-- JSON of Meta's repeats itself; where the server knows lz4, packing it costs little.
do $$
begin
    alter table captures alter column body set compression lz4;
exception when feature_not_supported then
    null;
end
$$;

create index captures_by_age on captures using brin (received_at);

create table inbox (
    capture_id  bigint primary key,
    appended_at timestamptz not null default now(),
    -- The version of the reader that appended it. An older one leaves it to a newer one.
    reader      smallint    not null,
    attempts    integer     not null default 0,
    retry_at    timestamptz,
    problem     text
);

comment on table inbox is 'Captures that are not processed yet';

create index inbox_problems on inbox (capture_id) where problem is not null;

create table quarantine (
    id          bigint generated always as identity,
    waba_id     text        not null default 'unknown',
    received_at timestamptz not null,
    reason      text        not null,
    body        bytea       not null,
    digest      bytea       not null,
    capture_id  bigint      not null,
    primary key (id, waba_id),
    unique (waba_id, digest)
);

comment on table quarantine is 'Parts of callbacks that Meta signed and that could not be read, kept as they came';

create index quarantine_by_capture on quarantine (capture_id);
create index quarantine_by_age on quarantine (received_at);

-- What turns recipients into pseudonyms that stay the same from export to export, and that nobody can
-- guess back. It belongs to no account: a recipient of two is one person.
create table pseudonym_key (
    only_row boolean primary key default true check (only_row),
    key      bytea not null default sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea)
);
insert into pseudonym_key default values;

comment on table pseudonym_key is 'The key of captures export --redact; delete the row, insert another, and pseudonyms start anew';
