-- A body that tells of a failure for the first time is new: it need not be looked for, and a unique index over
-- the digests of all, written at a random place for each row, cost as much as the row itself.
alter table captures add column new_failures boolean not null default false;
update captures c
   set new_failures = true
 where exists (select from failed_deliveries d where d.capture_id = c.id);
alter table captures alter column new_failures drop default;

alter table captures drop constraint captures_pkey;
alter table captures add primary key (id, waba_id);
-- The others are told apart by their digest; the former by the deliveries that refer to them.
create unique index captures_without_new_failures on captures (digest, waba_id) where not new_failures;

comment on column captures.new_failures is 'Whether a failed delivery came in it first; then that refers to it';
