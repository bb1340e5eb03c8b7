//! Alerts at real receivers: Prometheus' Alertmanager, the libraries of Standard Webhooks, and a
//! mail server that requires STARTTLS.
//!
//! `.ci/run` installs them: Debian's `prometheus-alertmanager`, and in the folder ALERT_TOOLS a
//! Python environment (`venv`) with `standardwebhooks` and `aiosmtpd`, and npm's `standardwebhooks`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockwatch::alerts::channel::Channel;
use lockwatch::simulator::{Scenario, Simulator};
use serde_json::{Value, json};

use super::{Receiver, WEBHOOK_SECRET, start_with, webhook};
use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, WABA, client, eventually, eventually_within,
};

/// The folder of the tools that CI installs.
fn tools() -> PathBuf {
    let folder = std::env::var_os("ALERT_TOOLS");
    PathBuf::from(folder.expect("ALERT_TOOLS: see the head of this file"))
}

/// A program that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Alertmanager takes it, keeps it firing, and resolves it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's prometheus-alertmanager"]
async fn alertmanager_fires_keeps_firing_and_resolves() {
    let pager = Receiver::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "route: {{receiver: pager, group_by: [incident], group_wait: 0s, group_interval: 1s}}\n\
         receivers: [{{name: pager, webhook_configs: [{{url: \"{}/pager\"}}]}}]\n",
        pager.address
    );
    fs::write(folder.path().join("config.yml"), config).unwrap();
    let port = free_port();
    let alertmanager = Command::new("prometheus-alertmanager")
        .arg(format!(
            "--config.file={}",
            folder.path().join("config.yml").display()
        ))
        .arg(format!(
            "--storage.path={}",
            folder.path().join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stderr(Stdio::null())
        .spawn();
    let _alertmanager = Running(alertmanager.expect("Debian's prometheus-alertmanager"));
    let url = format!("http://127.0.0.1:{port}");
    let ready = format!("{url}/-/ready");
    eventually("Alertmanager is ready", async || {
        client()
            .get(&ready)
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let channel = Channel::alertmanager("prom", &url.clone().into()).unwrap();
    let app = start_with(vec![channel], vec![Scenario::Payment]).await;
    app.fail("a").await;
    let statuses = || {
        let received = pager.received();
        let statuses = received
            .iter()
            .map(|message| message.body["status"].to_string());
        statuses.collect::<Vec<_>>()
    };
    eventually("it fires", async || statuses() == ["\"firing\""]).await;
    let alert = pager.received()[0].body["alerts"][0].clone();
    assert_eq!(alert["labels"]["waba_id"], WABA);
    assert_eq!(alert["annotations"]["cause"], "Payment problem");
    let ends_at = async || {
        let alerts = client()
            .get(format!("{url}/api/v2/alerts"))
            .send()
            .await
            .unwrap();
        let alerts: Value = serde_json::from_str(&alerts.text().await.unwrap()).unwrap();
        alerts[0]["endsAt"].as_str().unwrap().to_owned()
    };
    let first_end = ends_at().await;
    let minute = Duration::from_secs(80);
    eventually_within(minute, "it is told again", async || {
        ends_at().await > first_end
    })
    .await;
    client()
        .post(app.admin("/api/v1/incidents/1/resolve"))
        .send()
        .await
        .unwrap();
    let resolved = ["\"firing\"", "\"resolved\""];
    eventually("it is resolved", async || statuses() == resolved).await;
}

/// The published libraries verify what is sent.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ALERT_TOOLS"]
async fn the_libraries_of_standard_webhooks_verify_the_signature() {
    const PYTHON: &str = "import json, sys, standardwebhooks\n\
        m = json.load(sys.stdin)\n\
        standardwebhooks.Webhook(m['secret']).verify(m['body'], m['headers'])\n\
        print('verified')";
    const NODE: &str = "const {Webhook} = require('standardwebhooks');\n\
        const m = JSON.parse(require('fs').readFileSync(0));\n\
        new Webhook(m.secret).verify(m.body, m.headers);\n\
        console.log('verified');";
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Payment]).await;
    app.fail("a").await;
    eventually("it is told", async || hook.received().len() == 1).await;
    let message = &hook.received()[0];
    let header = |name: &str| message.headers[name].to_str().unwrap().to_owned();
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: serde_json::Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), header(name).into()))
        .collect();
    let body = std::str::from_utf8(&message.raw).unwrap();
    let python = tools().join("venv/bin/python");
    for (program, flag, script) in [(python, "-c", PYTHON), ("node".into(), "-e", NODE)] {
        let verify = |body: &str| {
            let input = json!({"secret": WEBHOOK_SECRET, "headers": headers, "body": body});
            let mut child = Command::new(&program)
                .args([flag, script])
                .env("NODE_PATH", tools().join("node_modules"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.to_string().as_bytes()).unwrap();
            drop(stdin);
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        };
        let name = program.display();
        assert_eq!(verify(body), "verified\n", "{name}");
        assert_eq!(
            verify(&body.replacen("Payment", "payment", 1)),
            "",
            "{name}"
        );
    }
}

/// A mail server takes the thread of an incident: lock, reminder, end. A mailbox that is gone keeps
/// nobody else's mail away.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ALERT_TOOLS"]
async fn a_mail_server_that_requires_starttls_takes_the_thread() {
    const SERVER: &str = r#"
import json, ssl, sys, email, email.policy
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith('boss'):
            return '550 no such mailbox'
        envelope.rcpt_tos.append(address)
        return '250 OK'
    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        names = ['Message-ID', 'In-Reply-To', 'References', 'Subject', 'From', 'Auto-Submitted']
        print(json.dumps({'to': envelope.rcpt_tos, 'tls': session.ssl is not None,
                          'user': session.auth_data.login.decode(), 'text': mail.get_content(),
                          **{name: mail[name] and str(mail[name]) for name in names}}), flush=True)
        return '250 OK'
folder, port = sys.argv[1], int(sys.argv[2])
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(folder + '/server.pem', folder + '/server.key')
accept = lambda server, session, envelope, mechanism, data: AuthResult(
    success=data.password == b'pass/word', auth_data=data)
class TlsController(Controller):
    def factory(self):
        return SMTP(self.handler, tls_context=context, require_starttls=True,
                    auth_required=True, authenticator=accept)
TlsController(Handler(), hostname='127.0.0.1', port=port).start()
print('ready', flush=True)
sys.stdin.read()
"#;
    let folder = tempfile::tempdir().unwrap();
    make_certificates(&folder);
    let port = free_port();
    let mut server = Command::new(tools().join("venv/bin/python"))
        .args([
            "-c",
            SERVER,
            folder.path().to_str().unwrap(),
            &port.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let _server = Running(server);
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let mails: Arc<Mutex<Vec<Value>>> = Arc::default();
    let collected = Arc::clone(&mails);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            collected
                .lock()
                .unwrap()
                .push(serde_json::from_str(&line).unwrap());
        }
    });
    let mails = || mails.lock().unwrap().clone();

    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let database = TestDatabase::create().await;
    let smtp_url = format!("smtp://lockwatch:pass%2Fword@localhost:{port}?tls=required");
    let authority = folder.path().join("ca.pem");
    let serve = Serve::on_database(
        &database.url,
        &[
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &simulator.url()),
            ("LOCKWATCH_SMTP_URL", &smtp_url),
            (
                "LOCKWATCH_ALERT_EMAIL_TO",
                "oncall@example.com,boss@example.com",
            ),
            (
                "LOCKWATCH_ALERT_EMAIL_FROM",
                "Lockwatch <lockwatch@example.org>",
            ),
            ("SSL_CERT_FILE", authority.to_str().unwrap()),
        ],
    );
    serve.wait_for_log("the database is ready");
    let db = database.database().pool();
    let body = lockwatch::meta::compose::StatusCallback::new()
        .timestamp(time::OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, "a")
        .into_body();
    let signature = lockwatch::meta::signature::sign(APP_SECRET, &body);
    let request = client()
        .post(&serve.webhook)
        .header(lockwatch::meta::signature::SIGNATURE_HEADER, signature);
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    eventually("the lock is mailed", async || mails().len() == 1).await;
    for later in [
        "update incidents set created_at = created_at - interval '24 h'",
        "update incident_changes set at = at - interval '24 h'",
    ] {
        sqlx::query(later).execute(&db).await.unwrap();
    }
    eventually("the reminder is mailed", async || mails().len() == 2).await;
    let resolve = format!("{}/api/v1/incidents/1/resolve", serve.admin);
    assert_eq!(client().post(resolve).send().await.unwrap().status(), 200);
    eventually("the end is mailed", async || mails().len() == 3).await;

    let answer: String = sqlx::query_scalar("select last_answer from alert_channels")
        .fetch_one(&db)
        .await
        .unwrap();
    assert!(
        answer.starts_with("250 OK, but not by boss@example.com: "),
        "{answer}"
    );
    assert!(answer.contains("no such mailbox"), "{answer}");
    let mails = mails();
    for mail in &mails {
        assert_eq!(mail["to"], json!(["oncall@example.com"]));
        assert_eq!(
            (&mail["tls"], &mail["user"]),
            (&json!(true), &json!("lockwatch"))
        );
        assert_eq!(mail["Auto-Submitted"], "auto-generated");
    }
    let root = &mails[0]["Message-ID"];
    let subject = format!("Account {WABA} locked (incident 1)");
    assert_eq!(mails[0]["Subject"], subject);
    for reply in &mails[1..] {
        assert_eq!((&reply["In-Reply-To"], &reply["References"]), (root, root));
        assert_eq!(reply["Subject"], format!("Re: {subject}"));
        assert_ne!(&reply["Message-ID"], root);
    }
    let text = |n: usize| mails[n]["text"].as_str().unwrap();
    assert!(
        text(0).contains("is locked: Payment problem"),
        "{}",
        text(0)
    );
    assert!(text(1).starts_with("Still: account"), "{}", text(1));
    assert!(text(2).starts_with("Over: account"), "{}", text(2));
}

/// Makes an authority and a certificate of localhost by it.
fn make_certificates(folder: &tempfile::TempDir) {
    let script = "
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority \
                -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        echo subjectAltName=DNS:localhost > names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                -extfile names -out server.pem";
    let made = Command::new("sh")
        .args(["-ec", script])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
}
