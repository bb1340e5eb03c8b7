-- Failures over time, counted as they are recorded: what the pictures are drawn from.
--
-- Counting the deliveries themselves would read every row of a storm for each picture, and the picture
-- would fade as retention takes them away. One row per minute in which something failed stays small.

create table failures_by_minute (
    incident_id   bigint      not null,
    waba_id       text        not null,
    -- The start of the minute.
    minute        timestamptz not null,
    failure_count bigint      not null,
    primary key (incident_id, minute, waba_id)
);

comment on table failures_by_minute is 'Failures of an incident in each minute that had any; their sum is its failure_count';

insert into failures_by_minute (incident_id, waba_id, minute, failure_count)
select incident_id, waba_id, date_bin('1 minute', failed_at, 'epoch'), count(*)
  from failed_deliveries
 group by 1, 2, 3;

-- What a number's health was at any time of an incident, and what it is now.
create index health_checks_by_number on health_checks (incident_id, phone_number_id, checked_at);
