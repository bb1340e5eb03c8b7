-- Failures over time, counted as they are recorded: what the pictures are drawn from.
--
-- Counting the deliveries themselves would read every row of a storm for each picture, and the picture
-- would fade as retention takes them away. Minutes are for the first days: an incident of three months has
-- a hundred thousand of them, so what is divided more coarsely is drawn from hours.

create table failures_by_minute (
    incident_id   bigint      not null,
    waba_id       text        not null,
    -- The start of the minute.
    minute        timestamptz not null,
    failure_count bigint      not null,
    primary key (incident_id, minute, waba_id)
);

comment on table failures_by_minute is 'Failures of an incident in each minute that had any';

create table failures_by_hour (
    incident_id   bigint      not null,
    waba_id       text        not null,
    -- The start of the hour.
    hour          timestamptz not null,
    failure_count bigint      not null,
    primary key (incident_id, hour, waba_id)
);

comment on table failures_by_hour is 'The same in each hour';

-- Counted by the database itself, whoever inserts: an older version beside this one, or a person.
create function count_failures_over_time() returns trigger language plpgsql as $$
begin
    insert into failures_by_minute as m (incident_id, waba_id, minute, failure_count)
    select incident_id, waba_id, date_bin('1 minute', failed_at, 'epoch'), count(*)
      from inserted
     group by 1, 2, 3
        on conflict (incident_id, minute, waba_id) do update
       set failure_count = m.failure_count + excluded.failure_count;
    insert into failures_by_hour as h (incident_id, waba_id, hour, failure_count)
    select incident_id, waba_id, date_bin('1 hour', failed_at, 'epoch'), count(*)
      from inserted
     group by 1, 2, 3
        on conflict (incident_id, hour, waba_id) do update
       set failure_count = h.failure_count + excluded.failure_count;
    return null;
end
$$;

-- From here on nothing is inserted beside us until all is counted.
create trigger count_over_time
    after insert on failed_deliveries
    referencing new table as inserted
    for each statement execute function count_failures_over_time();

insert into failures_by_minute (incident_id, waba_id, minute, failure_count)
select incident_id, waba_id, date_bin('1 minute', failed_at, 'epoch'), count(*)
  from failed_deliveries
 group by 1, 2, 3;

insert into failures_by_hour (incident_id, waba_id, hour, failure_count)
select incident_id, waba_id, date_bin('1 hour', minute, 'epoch'), sum(failure_count)
  from failures_by_minute
 group by 1, 2, 3;

-- What a number's health was at any time of an incident, and what it is now.
create index health_checks_by_number on health_checks (incident_id, phone_number_id, checked_at);

-- What people list by. A batch of failures changes an incident's count and its last failure: as long as no
-- index has either, the new row version needs no index entry (HOT), and an index more costs a batch nothing.
-- The few open ones are found by the account.
create index incidents_by_opening on incidents (opened_at);
create index incidents_by_cause on incidents (cause, id);
drop index incidents_open_by_age;
