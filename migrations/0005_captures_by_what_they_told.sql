-- A body that tells of a failure for the first time is new: it need not be looked for, and a unique index over
-- the digests of all, written at a random place for each row, cost as much as the row itself. Nothing that was
-- ever released looks for bodies by the former key.
alter table captures add column told_first boolean not null default false;
alter table captures alter column told_first drop default;

alter table captures drop constraint captures_pkey;
alter table captures add primary key (id, waba_id);
-- The others are told apart by their digest; the former by the deliveries that refer to them.
create unique index captures_told_before on captures (digest, waba_id) where not told_first;

comment on column captures.told_first is
    'Whether a failed delivery came in it that had not come before (not said of captures from before this column)';
