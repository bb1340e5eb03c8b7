-- The tables of Lockwatch. People query them, so the names are public.
--
-- A row that belongs to an account carries its waba_id, and so does every unique key. Whoever
-- changes an incident, its numbers or its checks first takes the account's lock, an advisory one:
-- pg_advisory_xact_lock(hashtextextended(waba_id, 131031)).
--
-- No column holds received JSON as jsonb: Postgres refuses things that JSON allows (\u0000,
-- 1e999999). Texts are truncated and cleaned before they come here.

create table accounts (
    waba_id              text primary key,
    name                 text,
    -- Meta throttles per account. No replica looks up a number of the account before this time.
    lookups_paused_until timestamptz,
    created_at           timestamptz not null default now()
);

comment on table accounts is 'WhatsApp Business Accounts with at least one lockout; test numbers as phone:<phone_number_id>';

create table incidents (
    id                   bigint generated always as identity,
    waba_id              text        not null references accounts (waba_id),
    -- What is locked. One incident of a kind is open at a time.
    kind                 text        not null default 'lock',
    opened_at            timestamptz not null,
    last_failure_at      timestamptz not null,
    -- The latest failure, or check that still shows the cause. Seven days later it is over.
    last_evidence_at     timestamptz not null,
    -- When it was over according to the evidence, and when that was noticed. Between the two it is
    -- looked up once more.
    ended_at             timestamptz,
    resolved_at          timestamptz,
    resolution           text,
    resolution_note      text,
    failure_count        bigint      not null default 0,
    cause                text        not null default 'pending',
    -- How badly the entity is hit (BLOCKED, LIMITED): a lesser restriction never hides a graver one.
    cause_severity       text,
    cause_summary        text,
    cause_entity_type    text,
    cause_entity_id      text,
    cause_error_code     bigint,
    possible_solution    text,
    cause_recorded_at    timestamptz,
    cause_check_id       bigint,
    previous_incident_id bigint,
    created_at           timestamptz not null default now(),
    primary key (id, waba_id),
    unique (id),
    check ((resolved_at is null) = (resolution is null)),
    check (resolved_at is null or ended_at is not null)
);

comment on table incidents is 'One lockout of one account, from its first failure until it ended';

-- A batch of failures changes an incident's counts and latest times. No index has these columns, so
-- the new row version needs no index entry (HOT).
create unique index incidents_one_open on incidents (waba_id, kind) where ended_at is null;
create index incidents_unresolved on incidents (id) where resolved_at is null;
create index incidents_by_account on incidents (waba_id, ended_at);
create index incidents_by_opening on incidents (opened_at);
create index incidents_by_cause on incidents (cause, id);

create table incident_changes (
    id          bigint generated always as identity,
    incident_id bigint      not null,
    waba_id     text        not null,
    -- opened, cause_found, cause_changed, reopened or resolved
    kind        text        not null,
    at          timestamptz not null default clock_timestamp(),
    -- Who did it by hand.
    by          text,
    -- The cause, or the resolution.
    detail      text,
    -- When a line of the log was written from it.
    logged_at   timestamptz,
    primary key (id, waba_id),
    foreign key (incident_id, waba_id) references incidents (id, waba_id)
);

comment on table incident_changes is 'What happened to an incident, written in the transaction that made it true';

create index incident_changes_by_incident on incident_changes (incident_id, id);
create index incident_changes_unlogged on incident_changes (id) where logged_at is null;

create table affected_numbers (
    incident_id          bigint      not null,
    waba_id              text        not null,
    phone_number_id      text        not null,
    display_phone_number text,
    first_failure_at     timestamptz not null,
    last_failure_at      timestamptz not null,
    failure_count        bigint      not null,
    -- The next look-up, and who is at it: a claim takes a lease and the next attempt number, and
    -- what it saves counts only while that number is the latest. A look-up that the account's budget
    -- granted has started.
    check_due_at         timestamptz,
    check_attempt        integer     not null default 0,
    check_lease_until    timestamptz,
    check_started_at     timestamptz,
    check_answers        integer     not null default 0,
    check_failures       integer     not null default 0,
    -- The evidence of this number, and since when it has been clear of the cause.
    latest_check_id      bigint,
    latest_answer_at     timestamptz,
    clear_since          timestamptz,
    primary key (incident_id, phone_number_id, waba_id),
    foreign key (incident_id, waba_id) references incidents (id, waba_id)
);

comment on table affected_numbers is 'Phone numbers with failures in an incident; each is looked up at Meta';

-- A number's first look-up comes before any other number's next.
create index affected_numbers_due on affected_numbers ((check_answers > 0), check_due_at) where check_due_at is not null;
-- A number is looked up by one at a time, also where it is affected by two incidents.
create index affected_numbers_by_number on affected_numbers (waba_id, phone_number_id);

create table failed_deliveries (
    id              bigint generated always as identity,
    incident_id     bigint      not null,
    failed_at       timestamptz not null,
    received_at     timestamptz not null,
    -- The callback that reported it first, if that is kept.
    capture_id      bigint,
    error_code      integer     not null,
    waba_id         text        not null,
    phone_number_id text        not null,
    message_id      text        not null,
    recipient_id    text,
    participant_id  text,
    error_title     text,
    error_message   text,
    error_details   text,
    callback_data   text,
    -- SHA-256 over the uncut number, message id, code and, in a group, participant. Ids can be
    -- longer than a btree takes.
    digest          bytea       not null,
    -- Incidents are never deleted, and a row is written behind the account's lock: a foreign key,
    -- checked for every row, took a third of the time.
    primary key (incident_id, id, waba_id),
    unique (waba_id, digest)
);

comment on table failed_deliveries is 'Messages that failed with a watched code, one row each, however often Meta reported them';

-- Retention looks for the oldest. Rows arrive in this order, so a few ranges tell where they are.
create index failed_deliveries_by_age on failed_deliveries using brin (received_at);

-- Failures over time, counted as they are recorded: what the pictures are drawn from. Counting the
-- deliveries themselves would read every row of a storm for each picture, and retention takes them.
create table failures_by_minute (
    incident_id   bigint      not null,
    waba_id       text        not null,
    -- The start of the minute.
    minute        timestamptz not null,
    failure_count bigint      not null,
    primary key (incident_id, minute, waba_id)
);

comment on table failures_by_minute is 'Failures of an incident in each minute that had any';

-- An incident of three months has a hundred thousand minutes.
create table failures_by_hour (
    incident_id   bigint      not null,
    waba_id       text        not null,
    -- The start of the hour.
    hour          timestamptz not null,
    failure_count bigint      not null,
    primary key (incident_id, hour, waba_id)
);

comment on table failures_by_hour is 'The same in each hour';

create table health_checks (
    id               bigint generated always as identity,
    incident_id      bigint      not null,
    waba_id          text        not null,
    phone_number_id  text        not null,
    checked_at       timestamptz not null,
    -- answered, no_health, not_asked, refused, throttled or unreachable
    outcome          text        not null,
    http_status      integer,
    -- The worst of the entities, not the root that Meta sends: that one counts calling as well.
    can_send_message text,
    -- What was read of the answer, written by us.
    entities         jsonb,
    -- The answer as it came, truncated, and without the token if Meta repeated it.
    response         text,
    error            text,
    duration_ms      integer     not null,
    primary key (id, waba_id),
    foreign key (incident_id, waba_id) references incidents (id, waba_id)
);

comment on table health_checks is 'Every look-up of health_status and its answer';

create index health_checks_by_incident on health_checks (incident_id, id);
-- The look-up budget counts the last hour.
create index health_checks_by_account on health_checks (waba_id, checked_at);
-- What a number's health was at any time of an incident, and what it is now.
create index health_checks_by_number on health_checks (incident_id, phone_number_id, checked_at);
create index health_checks_by_age on health_checks (checked_at);
