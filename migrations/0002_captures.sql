-- Captures: callbacks kept byte for byte, for replay.
--
-- A body is kept once, with the first account in it, however many accounts it is about: nothing refers to
-- a capture by a foreign key, so that a shard never refers to another, and a capture may leave after its
-- time while an incident stays.

create table captures (
    id               bigint generated always as identity,
    waba_id          text        not null default 'unknown',
    -- As Meta signed it. Written as JSON again it would have another signature.
    body             bytea       not null,
    -- SHA-256 of the body.
    digest           bytea       not null,
    -- X-Hub-Signature-256 as it came first, and the position of the app secret that matched it, from 1.
    signature        text,
    app_secret       integer,
    received_at      timestamptz not null,
    last_received_at timestamptz not null,
    times_received   bigint      not null,
    -- Failed deliveries with 131031 in it.
    failure_count    integer     not null,
    -- The id has no index of its own: it would cost a tenth of the speed at which callbacks are taken, and
    -- whoever looks for captures goes by time or by body. The digest is first, since it tells rows apart.
    primary key (digest, waba_id)
);

comment on table captures is 'Callbacks kept byte for byte, one row per distinct body';

-- JSON of Meta's repeats itself; where the server knows lz4, packing it costs little.
do $$
begin
    alter table captures alter column body set compression lz4;
exception when feature_not_supported then
    null;
end
$$;

alter table failed_deliveries add column capture_id bigint;
alter table quarantine add column capture_id bigint;
create index quarantine_by_capture on quarantine (capture_id);

comment on column failed_deliveries.capture_id is 'The callback it came in first, if that is kept';

-- Retention looks for the oldest, and exports go by age.
create index captures_by_age on captures (received_at, id);
create index failed_deliveries_by_age on failed_deliveries (received_at);
create index health_checks_by_age on health_checks (checked_at);
create index quarantine_by_age on quarantine (received_at);

-- What turns recipients into pseudonyms that stay the same from export to export, and that nobody can
-- guess back. It belongs to no account: a recipient of two is one person.
create table pseudonym_key (
    only_row boolean primary key default true check (only_row),
    key      bytea not null default sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea)
);
insert into pseudonym_key default values;

comment on table pseudonym_key is 'The key of captures export --redact; delete the row, insert another, and pseudonyms start anew';
