//! The page of the admin address, in a real browser: it shows a service, a fault and
//! the recovery, and is never loaded again by hand.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use hickory_proto::rr::RecordType;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Agent, Serving, ask_udp, http_client, serve, wait_for};

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn started(program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    Running(child.unwrap_or_else(|error| {
        panic!("{program}: {error}; scripts/test installs what the tests need")
    }))
}

/// One page of a browser, led by WebDriver.
struct Browser {
    session: String,
    client: reqwest::Client,
    _driver: Running,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let driver = started("chromedriver", &[&format!("--port={port}")]);
        let (client, base) = (http_client(), format!("http://127.0.0.1:{port}"));
        wait_for("the browser's driver", async || {
            let status = client.get(format!("{base}/status")).send().await.ok()?;
            let status: Value = status.json().await.ok()?;
            status["value"]["ready"]
                .as_bool()
                .filter(|ready| *ready)
                .map(drop)
        })
        .await;
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-profile");
        _ = fs::remove_dir_all(&profile);
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let options = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments } } } });
        let made = client
            .post(format!("{base}/session"))
            .json(&options)
            .send()
            .await
            .unwrap();
        let made: Value = made.json().await.unwrap();
        let id = made["value"]["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("{made}"));
        let browser = Self {
            session: format!("{base}/session/{id}"),
            client,
            _driver: driver,
        };
        browser.tell("url", json!({ "url": url })).await;
        browser
    }

    async fn tell(&self, command: &str, body: Value) -> Value {
        let url = format!("{}/{command}", self.session);
        let told = self.client.post(url).json(&body).send().await.unwrap();
        told.json::<Value>().await.unwrap()["value"].clone()
    }

    /// What a person sees.
    async fn text(&self) -> String {
        let script = json!({ "script": "return document.body.innerText", "args": [] });
        self.tell("execute/sync", script)
            .await
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn shows(&self, what: &str) {
        wait_for(&format!("{what:?} on the page"), async || {
            self.text().await.contains(what).then_some(())
        })
        .await;
    }

    async fn close(self) {
        let request = self.client.request(Method::DELETE, &self.session);
        request.send().await.unwrap();
    }
}

#[tokio::test]
async fn a_browser_shows_a_service_a_fault_and_the_recovery() {
    let mut agent = Agent::start().await;
    agent.register_instances("web", 2).await;
    let mut command = serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let serving = Serving::start(command);
    let (stub, admin) = (serving.dns, serving.admin.clone());
    let ask = async || ask_udp(stub, "web.service.consul.", RecordType::A).await;

    let browser = Browser::open(&format!("http://{admin}/")).await;
    browser.shows("proconsul well").await;
    ask().await.unwrap();
    browser.shows("web.service.consul.").await;

    agent.kill();
    wait_for("the fault on the page", async || {
        ask().await;
        browser
            .text()
            .await
            .contains("answers from memory")
            .then_some(())
    })
    .await;

    agent.restart().await;
    agent.register_instances("web", 2).await;
    wait_for("the recovery on the page", async || {
        ask().await;
        browser
            .text()
            .await
            .contains("proconsul well")
            .then_some(())
    })
    .await;

    drop(serving);
    browser.shows("proconsul does not answer").await;
    browser.close().await;
}
