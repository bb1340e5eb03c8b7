-- Alerts: changes of incidents on their way to people.

alter table incident_changes
    -- When it was decided whom to tell.
    add column dispatched_at timestamptz;

create index incident_changes_undispatched on incident_changes (id) where dispatched_at is null;

create table alerts (
    id              bigint generated always as identity,
    change_id       bigint      not null,
    incident_id     bigint      not null,
    waba_id         text        not null,
    channel         text        not null,
    -- What it tells: opened, cause_changed, resolved or reopened.
    kind            text        not null,
    -- waiting, accepted, dead (given up), or folded into another message.
    state           text        not null default 'waiting',
    attempts        integer     not null default 0,
    next_attempt_at timestamptz not null default now(),
    -- One process delivers it at a time.
    lease_until     timestamptz,
    -- Whether it was told together with others.
    in_digest       boolean     not null default false,
    -- What the receiver answered last, without secrets.
    last_answer     text,
    created_at      timestamptz not null default now(),
    ended_at        timestamptz,
    primary key (id, waba_id),
    unique (change_id, channel, waba_id)
);

comment on table alerts is 'A change of an incident on its way to one channel';

create index alerts_waiting on alerts (channel, next_attempt_at) where state = 'waiting';
-- How many were told in the last minute.
create index alerts_by_end on alerts (channel, ended_at) where ended_at is not null;
create index alerts_by_incident on alerts (incident_id, channel);
create index alerts_by_age on alerts (created_at);

-- Of what happened before there were alerts, nobody is told now.
update incident_changes set dispatched_at = now();
