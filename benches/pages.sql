-- The data of a busy partner after years: 10,000 incidents of 400 accounts, 300 of them open, and
-- 1,000,000 deliveries. One open incident has 300,000 of them, 200 numbers, and 90 days of hourly
-- checks of each number.

select setseed(0.131031);

insert into accounts (waba_id)
select (102290129340000 + a)::text from generate_series(0, 399) a;

-- The last incident of the first hundred accounts is old and still open, so that a query for open
-- incidents finds them far apart. The large one is the newest, so that it is on the first page.
create temporary table incident as
select g as id, (102290129340000 + a)::text as waba_id, a, is_open, g = 10000 as is_large,
       case when g = 10000 then now() - interval '90 days'
            when is_open then now() - (6 + random() * 80) * interval '1 day'
            else now() - interval '92 days' - (10000 - g) * interval '1 hour' end as opened_at,
       case when g = 10000 then interval '90 days'
            else (0.1 + power(random(), 3) * 5) * interval '1 day' end as lasts,
       case when g = 10000 then 200 else 1 + g % 5 end as numbers,
       -- No open one is `lookup_denied`: a service looks those up again at once when it starts.
       (array['policy_violation', 'payment', 'unreported', 'business_verification',
              'phone_registration', 'two_step_verification', 'other_restriction',
              'lookup_denied'])[1 + g % case when is_open then 7 else 8 end] as cause
  from (select g, a, g = max(g) over (partition by a) and (a < 299 or g = 10000) as is_open
          from (select g, case when g = 10000 then 399
                               when g > 9700 then g - 9601
                               when g <= 2000 then g % 400
                               else 100 + g % 299 end as a
                  from generate_series(1, 10000) g) placed) chosen;

insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at, ended_at,
                       resolved_at, resolution, cause,
                       cause_severity, cause_summary, cause_entity_type, cause_entity_id,
                       cause_error_code, possible_solution, cause_recorded_at,
                       previous_incident_id)
select waba_id, opened_at,
       last_failure_at, last_failure_at,
       case when not is_open then opened_at + lasts + interval '20 minutes' end,
       case when not is_open then opened_at + lasts + interval '20 minutes' end,
       case when not is_open then (array['recovered', 'quiet', 'manual'])[1 + id % 3] end,
       cause, 'BLOCKED',
       'WABA ' || waba_id || ' is BLOCKED (141006): Business account is restricted from messaging '
       || 'users. There is a problem with the payment method.',
       'WABA', waba_id, 141006,
       'Please check your payment method in Billing Hub: '
       || 'https://business.facebook.com/billing_hub',
       opened_at + interval '2 seconds',
       (select max(p.id) from incident p where p.a = i.a and p.id < i.id)
  from incident i,
       lateral (select case when is_open then now() - random() * interval '5 days'
                            else opened_at + lasts end as last_failure_at) l
 order by id;

insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id, recipient_id,
                               failed_at, received_at, error_code, error_title, error_message,
                               error_details, digest)
select i.id, i.waba_id, (106540352000000 + i.a * 1000 + n % i.numbers)::text,
       'wamid.HBgLMTY1MDU1' || lpad(n::text, 8, '0') || 'FQIAERgSQzVERkQ4MkY1OTc0QkY1MkY5AA==',
       '1650555' || lpad((n % 10000)::text, 4, '0'), at, at + interval '1 second', 131031,
       'Business Account locked', 'Business Account locked',
       'Message failed to send because your business account has been locked.',
       sha256(n::text::bytea)
  from (select n, i.*, i.opened_at + random() * i.lasts as at
          from (select n, case when n <= 9999 then n
                               when n <= 700000 then 1 + floor(power(random(), 2) * 9999)::int
                               else 10000 end as id
                  from generate_series(1, 1000000) n offset 0) placed
          join incident i using (id)) i
 order by at;

insert into affected_numbers (incident_id, waba_id, phone_number_id, display_phone_number,
                              first_failure_at, last_failure_at, failure_count, check_due_at,
                              check_answers)
select d.incident_id, d.waba_id, d.phone_number_id, '+1 ' || right(d.phone_number_id, 10),
       min(d.failed_at), max(d.failed_at), count(*),
       case when i.is_open then now() + (1 + random() * 23) * interval '1 hour' end, 3
  from failed_deliveries d
  join incident i on i.id = d.incident_id
 group by d.incident_id, d.waba_id, d.phone_number_id, i.is_open
 order by d.incident_id;

update incidents i
   set failure_count = n.failures
  from (select incident_id, sum(failure_count) as failures from affected_numbers group by 1) n
 where n.incident_id = i.id;

-- A check for every hour of 90 days of the large incident, a few checks for the others. They are
-- inserted in the order of their time.
insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome, http_status,
                           can_send_message, entities, response, duration_ms)
select incident_id, waba_id, phone_number_id, at, 'answered', 200, verdict, entities::jsonb,
       '{"health_status":{"can_send_message":"' || verdict || '","entities":' || entities
       || '},"id":"' || phone_number_id || '"}',
       180 + (random() * 200)::int
  from (select n.*,
               '[{"entity_type":"PHONE_NUMBER","id":"' || phone_number_id
               || '","can_send_message":"AVAILABLE"},'
               || '{"entity_type":"WABA","id":"' || waba_id
               || '","can_send_message":"' || verdict
               || '","errors":[{"error_code":141006,'
               || '"error_description":"There is an error with the payment method. '
               || 'This will block business initiated conversations.",'
               || '"possible_solution":"There was an error with your payment method. '
               || 'Please add a new payment method to the account."}]},'
               || '{"entity_type":"BUSINESS","id":"10158000000000","can_send_message":"LIMITED",'
               || '"additional_info":["Your business has not passed business verification yet."]},'
               || '{"entity_type":"APP","id":"670843887433847","can_send_message":"AVAILABLE"}]'
               as entities
          from (select n.*, at,
                       case when random() < 0.1 then 'LIMITED' else 'BLOCKED' end as verdict
                  from affected_numbers n
                  join incident i on i.id = n.incident_id
                 cross join lateral (
                       select i.opened_at + hour * interval '1 hour'
                              + random() * interval '10 minutes' as at
                         from generate_series(
                              0, case when i.is_large then 90 * 24 - 1 else 4 end) hour) h) n) made
 where at <= now()
 order by at;

update affected_numbers n
   set latest_check_id = c.id, latest_answer_at = c.checked_at
  from (select incident_id, phone_number_id, max(id) as id, max(checked_at) as checked_at
          from health_checks group by 1, 2) c
 where c.incident_id = n.incident_id and c.phone_number_id = n.phone_number_id;

update incidents i
   set cause_check_id = n.id
  from (select incident_id, min(latest_check_id) as id from affected_numbers group by 1) n
 where n.incident_id = i.id;
