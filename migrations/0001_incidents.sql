-- The tables of Lockwatch. People query them, so the names are public.
--
-- Every table carries waba_id, and every unique key includes it: accounts never share a row, so the data
-- can be sharded by account (Citus) without another schema. Whoever changes an incident, its numbers or
-- its checks first locks the account's row; that one lock order is what makes counts exact.
--
-- No column holds received JSON as jsonb: Postgres refuses things JSON allows (\u0000, 1e999999). Texts
-- are cut and cleaned before they come here, bytes that could not be read are bytea.

create table accounts (
    waba_id              text primary key,
    name                 text,
    -- Meta throttles per account. Nobody, on any replica, looks up a number of the account before this.
    lookups_paused_until timestamptz,
    created_at           timestamptz not null default now()
);

comment on table accounts is 'WhatsApp Business Accounts with at least one lockout; test numbers as phone:<phone_number_id>';

create table incidents (
    id                   bigint generated always as identity,
    waba_id              text        not null references accounts (waba_id),
    opened_at            timestamptz not null,
    last_failure_at      timestamptz not null,
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
    primary key (id, waba_id),
    check ((resolved_at is null) = (resolution is null))
);

comment on table incidents is 'One lockout of one account, from its first failure until resolved';

create unique index incidents_one_open on incidents (waba_id) where resolved_at is null;
create index incidents_by_account on incidents (waba_id, resolved_at);
create index incidents_open_by_age on incidents (last_failure_at) where resolved_at is null;

create table affected_numbers (
    incident_id          bigint      not null,
    waba_id              text        not null,
    phone_number_id      text        not null,
    display_phone_number text,
    first_failure_at     timestamptz not null,
    last_failure_at      timestamptz not null,
    failure_count        bigint      not null,
    -- The next look-up, and who is at it: a claim takes a lease and the next attempt number, and what it
    -- saves counts only while that number is the latest. A look-up that the account's budget granted has
    -- started.
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
create index affected_numbers_by_account on affected_numbers (waba_id);

create table failed_deliveries (
    id              bigint generated always as identity,
    incident_id     bigint      not null,
    waba_id         text        not null,
    phone_number_id text        not null,
    message_id      text        not null,
    recipient_id    text,
    participant_id  text,
    failed_at       timestamptz not null,
    received_at     timestamptz not null,
    error_code      integer     not null,
    error_title     text,
    error_message   text,
    error_details   text,
    callback_data   text,
    -- SHA-256 over the uncut number, message id, recipient or participant, and code. Ids can be longer
    -- than a btree takes.
    digest          bytea       not null,
    primary key (id, waba_id),
    unique (waba_id, digest),
    foreign key (incident_id, waba_id) references incidents (id, waba_id)
);

comment on table failed_deliveries is 'Messages that failed with 131031, one row each, however often Meta sent them';

create index failed_deliveries_by_incident on failed_deliveries (incident_id, id);

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
    -- The answer as it came, cut, and without the token if Meta repeated it.
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

create table quarantine (
    id          bigint generated always as identity,
    waba_id     text        not null default 'unknown',
    received_at timestamptz not null,
    reason      text        not null,
    body        bytea       not null,
    digest      bytea       not null,
    primary key (id, waba_id),
    unique (waba_id, digest)
);

comment on table quarantine is 'Bytes that Meta signed and that could not be read, kept as they came';
