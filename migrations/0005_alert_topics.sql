-- Alerts about more than incidents, reminders that stop, and names for who did what.

alter table incidents
    -- Who has seen it, and when: reminders stop.
    add column acknowledged_at timestamptz,
    add column acknowledged_by text;

alter table accounts
    -- Words of yours, by which channels choose accounts.
    add column labels           text[] not null default '{}',
    -- Since when a person wants to hear nothing of it.
    add column muted_at         timestamptz,
    -- The latest callback of any kind.
    add column last_callback_at timestamptz;

comment on table accounts is 'WhatsApp Business Accounts that callbacks came from; test numbers as phone:<phone_number_id>';

-- When it was decided whom to tell. Of what came before there were alerts, nobody is told now.
alter table account_events add column dispatched_at timestamptz;
update account_events set dispatched_at = now();
create index account_events_undispatched on account_events (id) where dispatched_at is null;

-- Faults of Lockwatch itself, or of what it depends on, that last.
create table troubles (
    id        bigint generated always as identity,
    -- lookups_failing, callbacks_silent, subscription_lost, token_expiring, inbox_stuck or
    -- quarantined
    kind      text        not null,
    -- The account that it concerns, or all.
    waba_id   text        not null,
    -- The facts, in a sentence.
    detail    text        not null,
    began_at  timestamptz not null,
    -- When it was last there. It is over when it has been away for a while.
    seen_at   timestamptz not null,
    -- When people were told of its beginning and of its end.
    told_at   timestamptz,
    ended_at  timestamptz,
    primary key (id, waba_id)
);

comment on table troubles is 'Reasons why Lockwatch would hear or tell too little, while they lasted';

create unique index troubles_one_at_a_time on troubles (waba_id, kind) where ended_at is null;

-- How long an account is usually silent: the longest time between two callbacks, by day.
create table callback_gaps (
    waba_id text     not null,
    day     date     not null,
    longest interval not null,
    primary key (waba_id, day)
);

comment on table callback_gaps is 'The longest silence between two callbacks of an account on a day; waba_id all is any account';

-- What Graph told of us last, by account: of its token, and of its subscription.
create table self_checks (
    waba_id    text        not null,
    -- token or subscription
    kind       text        not null,
    checked_at timestamptz not null,
    -- What is wrong, in a sentence.
    problem    text,
    primary key (waba_id, kind)
);

comment on table self_checks is 'Whether we would hear of an account: its token, and whether it reports to our app';

-- An alert tells one of three: a change of an incident, a notice of Meta's, a trouble. Or it only
-- tests its channel.
alter table alerts
    alter column change_id drop not null,
    alter column incident_id drop not null,
    add column event_id    bigint,
    add column trouble_id  bigint,
    -- It is tried for a day from then on: from its writing, or from a retry by hand.
    add column tried_since timestamptz not null default now(),
    add unique (event_id, channel, waba_id),
    add unique (trouble_id, kind, channel, waba_id),
    add check (num_nonnulls(change_id, event_id, trouble_id) = case kind when 'test' then 0 else 1 end);

update alerts set kind = 'incident.' || kind;
-- The page of the channels counts these.
create index alerts_open on alerts (channel) where state in ('waiting', 'dead');

-- The channels, as they answered last.
create table alert_channels (
    channel     text primary key,
    accepted_at timestamptz,
    failed_at   timestamptz,
    last_answer text
);

comment on table alert_channels is 'When each channel last took an alert, and last did not';
