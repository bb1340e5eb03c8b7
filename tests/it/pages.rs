//! The largest size of the dashboard's pages, and the numbers behind their pictures.

use lockwatch::store::timeline::{Bins, failures_over_time};
use sqlx::AssertSqlSafe;
use time::{Duration, OffsetDateTime};

use crate::support::{TestApp, client};

/// The promised limit of a page.
const PAGE_BYTES: usize = 100_000;

/// Inserts sixty open incidents and thirty resolved ones, with 40 numbers each, the longest text
/// that each column ever gets, and lanes that flap at every bin. `filler` makes up all texts.
fn worst_case_sql(filler: char) -> String {
    // Ids are shorter than their limit: a number is appended to tell them apart.
    let text = |max_bytes: usize| {
        let repeated = String::from(filler).repeat(max_bytes / filler.len_utf8());
        format!("'{repeated}'")
    };
    let (short, long, id, answer) = (text(512), text(2048), text(56), text(16 * 1024));
    format!(
        "insert into accounts (waba_id) select {id} || n from generate_series(1, 90) n;

         insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at, ended_at,
                                resolved_at, resolution, resolution_note, failure_count, cause, cause_severity,
                                cause_summary, cause_entity_type, cause_entity_id,
                                cause_error_code, possible_solution, cause_recorded_at,
                                previous_incident_id)
         select {id} || n, now() - interval '58 minutes', now(), now(), case when n > 60 then now() end,
                case when n > 60 then now() end, case when n > 60 then 'manual' end, {long}, 1234567, 'other_restriction', {short},
                {long} || {long}, {short}, {short}, 141006, {long},
                now() - interval '57 minutes', 1
           from generate_series(1, 90) n;

         insert into affected_numbers (incident_id, waba_id, phone_number_id, display_phone_number,
                                       first_failure_at, last_failure_at, failure_count,
                                       check_due_at)
         select id, waba_id, {id} || n, {short}, opened_at, now(), 123456,
                now() + interval '1 day'
           from incidents, generate_series(1, 40) n;

         insert into failures_by_minute (incident_id, waba_id, minute, failure_count)
         select id, waba_id, minute, 1234567
           from incidents,
                generate_series(date_trunc('minute', now() - interval '58 minutes'), now(),
                                '1 minute') minute;

         insert into failures_by_hour (incident_id, waba_id, hour, failure_count)
         select incident_id, waba_id, date_bin('1 hour', minute, 'epoch'), sum(failure_count)
           from failures_by_minute group by 1, 2, 3;

         insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id,
                                        recipient_id, participant_id, failed_at, received_at,
                                        error_code, error_title, error_message, error_details,
                                        callback_data, digest)
         select id, waba_id, {id} || n, {short}, {short}, {short}, now(), now(), 131031, {long},
                {long}, {long}, {long}, sha256((id + n * 1000)::text::bytea)
           from incidents, generate_series(1, 40) n;

         insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome,
                                    http_status, can_send_message, entities, response, error,
                                    duration_ms)
         select incident_id, n.waba_id, phone_number_id,
                opened_at + minute * interval '1 minute' - interval '30 seconds', 'answered', 200,
                case when minute % 2 = 0 then 'BLOCKED' else {short} end,
                case when minute = 58 then
                  (select jsonb_agg(jsonb_build_object(
                            'entity_type', {short}, 'id', {short}, 'can_send_message', {short},
                            'additional_info', array[{long}, {long}, {long}],
                            'errors', array[error, error, error]))
                     from generate_series(1, 16),
                          jsonb_build_object('error_code', 141006,
                                             'error_description', {long}) error) end,
                {answer}, {long}, 12345
           from affected_numbers n
           join incidents i on i.id = incident_id, generate_series(1, 58) minute
          where incident_id in (1, 90)
            and phone_number_id in (select {id} || n from generate_series(10, 18) n)
          order by 4;

         update affected_numbers set failure_count = 234567
          where phone_number_id in (select phone_number_id from health_checks);

         update incidents
            set cause_check_id = (select max(id) from health_checks
                                   where incident_id = incidents.id)"
    )
}

#[tokio::test]
async fn a_page_stays_under_100_kb_with_the_longest_texts() {
    // A quote grows sixfold in HTML; an emoji has four bytes.
    for filler in ['"', '👹', 'x'] {
        let app = TestApp::start().await;
        sqlx::raw_sql(AssertSqlSafe(worst_case_sql(filler)))
            .execute(&app.db)
            .await
            .unwrap();
        let pages = [
            "/",
            "/?state=open",
            "/?state=resolved",
            "/incidents/1",
            "/incidents/1?reveal=recipients",
            "/incidents/90",
        ];
        for page in pages {
            let url = format!("http://{}{page}", app.service.admin_address);
            let answer = client()
                .get(url)
                .send()
                .await
                .unwrap()
                .error_for_status()
                .unwrap();
            let size = answer.bytes().await.unwrap().len();
            assert!(size < PAGE_BYTES, "{page} of {filler:?} has {size} bytes");
        }
    }
}

#[tokio::test]
async fn failures_are_counted_in_the_bin_of_their_time() {
    let app = TestApp::start().await;
    let start = (OffsetDateTime::now_utc() - Duration::days(2)).replace_time(time::Time::MIDNIGHT);
    for (minutes, id) in [(0, "a"), (59, "b"), (60, "c"), (119, "d"), (299, "e")] {
        app.fail_at(id, start + Duration::minutes(minutes)).await;
    }
    let id = app.incident().await.id;
    // Bins of half an hour are counted from minutes, larger ones from hours.
    for (width, count, expected) in [
        (60, 4, vec![2, 2, 0, 1]),
        (120, 3, vec![4, 0, 1]),
        (30, 4, vec![1, 1, 1, 2]),
    ] {
        let bins = Bins {
            start,
            width: Duration::minutes(width),
            count,
        };
        let failures = failures_over_time(&app.db, &[(id, bins)]).await.unwrap();
        assert_eq!(failures[&id], expected, "bins of {width} minutes");
    }
}
