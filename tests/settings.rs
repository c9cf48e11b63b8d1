//! Consul's key-value store through the library and the program, at a real agent.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Output, Stdio},
};

use proconsul::{ErrorKind, Kv, Resolver};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{
    Agent, PATIENCE, closed_port,
    http::{ScriptedHttp, status},
    signal, wait_for,
};
use tokio::time::timeout;

#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Limits {
    calls: u32,
}

fn kv(agent: &Agent) -> Kv {
    let builder = Resolver::builder().dns("none").http(&agent.http());
    builder.build().unwrap().kv()
}

#[tokio::test]
async fn values_are_written_read_listed_and_deleted() {
    let agent = Agent::start().await;
    let kv = kv(&agent);
    assert_eq!(kv.get("web/limits").await.unwrap(), None);
    kv.put_as("web/limits", &Limits { calls: 7 }).await.unwrap();
    kv.put("/web/b c/ü?&", vec![0, 255]).await.unwrap();
    kv.put("web/empty", "").await.unwrap();
    let limits: Option<Limits> = kv.get_as("web/limits").await.unwrap();
    assert_eq!(limits, Some(Limits { calls: 7 }));
    let odd = kv.get("web/b c/ü?&").await.unwrap().unwrap();
    assert_eq!((&*odd.key, &*odd.value), ("web/b c/ü?&", &[0, 255][..]));
    assert!(odd.text().is_err());
    assert_eq!(
        kv.get("web/empty").await.unwrap().unwrap().text().unwrap(),
        ""
    );
    let keys: Vec<_> = kv
        .list("web/")
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.key)
        .collect();
    assert_eq!(
        keys,
        [
            "web/b c/ü?&".into(),
            "web/empty".into(),
            "web/limits".into()
        ] as [Box<str>; 3]
    );

    let index = kv.get("web/limits").await.unwrap().unwrap().index;
    assert!(
        !kv.put_if("web/limits", "{}", 0).await.unwrap(),
        "there is one"
    );
    assert!(kv.put_if("web/limits", "{}", index).await.unwrap());
    assert!(
        !kv.put_if("web/limits", "{}", index).await.unwrap(),
        "it was changed"
    );
    assert!(kv.put_if("web/new", "1", 0).await.unwrap());

    let secret = "{\"calls\": \"hush\"}";
    kv.put("web/limits", secret).await.unwrap();
    let error = kv.get_as::<Limits>("web/limits").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let told = format!(
        "{error} {error:?} {:?}",
        kv.get("web/limits").await.unwrap()
    );
    assert!(
        told.contains("web/limits") && !told.contains("hush"),
        "{told}"
    );

    kv.delete("web/limits").await.unwrap();
    kv.delete("web/limits").await.unwrap();
    assert_eq!(kv.get("web/limits").await.unwrap(), None);
    kv.delete_all("web/").await.unwrap();
    assert_eq!(kv.list("").await.unwrap(), []);
    for bad in ["", "/", "a/../b", "."] {
        assert_eq!(
            kv.get(bad).await.unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
    }
    assert!(kv.delete_all("").await.is_err());
    let large = kv
        .put("web/large", vec![b'x'; 600 << 10])
        .await
        .unwrap_err();
    assert_eq!(large.kind(), ErrorKind::Invalid, "{large}");
}

#[tokio::test]
async fn a_setting_is_told_as_it_changes_and_keeps_what_could_be_read_last() {
    let mut agent = Agent::start().await;
    let kv = kv(&agent);
    let mut setting = kv.watch::<Limits>("web/limits").unwrap();
    assert_eq!(setting.ready().await, None);
    assert!(setting.problem().is_none());
    let calls = async |setting: &proconsul::Setting<Limits>, wanted: u32| {
        wait_for("the value", async || {
            (setting.get()?.calls == wanted).then_some(())
        })
        .await;
    };
    kv.put_as("web/limits", &Limits { calls: 1 }).await.unwrap();
    calls(&setting, 1).await;
    kv.put("web/limits", "no JSON").await.unwrap();
    wait_for("the problem", async || setting.problem()).await;
    assert_eq!(setting.get().unwrap().calls, 1);
    kv.put_as("web/limits", &Limits { calls: 2 }).await.unwrap();
    calls(&setting, 2).await;
    assert!(setting.problem().is_none());
    kv.delete("web/limits").await.unwrap();
    wait_for("its end", async || setting.get().is_none().then_some(())).await;
    kv.put_as("web/limits", &Limits { calls: 3 }).await.unwrap();
    calls(&setting, 3).await;
    // A clone sees the same; and an agent that is gone takes nothing away.
    let clone = setting.clone();
    agent.kill();
    let gone = wait_for("the problem", async || clone.problem()).await;
    assert!(gone.is_unavailable(), "{gone}");
    assert_eq!(setting.get().unwrap().calls, 3);
    agent.restart().await;
    // This agent has lost its data.
    let lost = async {
        while setting.get().is_some() {
            setting.changed().await;
        }
    };
    timeout(PATIENCE, lost).await.unwrap();
}

#[tokio::test]
async fn of_several_agents_the_next_is_asked() {
    let agent = Agent::start().await;
    let both = format!("http://{},{}", closed_port(), agent.http());
    let kv = Resolver::builder().http(&both).build().unwrap().kv();
    kv.put("a", "1").await.unwrap();
    assert!(kv.put_if("b", "1", 0).await.unwrap());
    let setting = kv
        .watch_with("a", |entry| Ok(entry.text()?.to_owned()))
        .unwrap();
    assert_eq!(*setting.ready().await.unwrap(), "1");
}

#[tokio::test]
async fn one_agent_that_refuses_does_not_speak_for_the_others() {
    let agent = Agent::start().await;
    let lags = ScriptedHttp::start(|_| vec![status("403 Forbidden", "ACL not found")]);
    let both = format!("{},{}", lags.url(), agent.http());
    let kv = Resolver::builder().http(&both).build().unwrap().kv();
    kv.put("a", "1").await.unwrap();
    assert_eq!(kv.get("a").await.unwrap().unwrap().text().unwrap(), "1");
    // Who is not there says nothing else.
    let alone = format!("{},http://{}", lags.url(), closed_port());
    let kv = Resolver::builder().http(&alone).build().unwrap().kv();
    let error = kv.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(error.attempts().len(), 2);
}

#[test]
fn where_there_is_no_api_there_are_no_settings_to_wait_for() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.args(["kv", "watch", "a", "--http", "none"]);
    let output = command.env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

fn program(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command.env_clear().arg("kv").args(arguments);
    command.args(["--http", &agent.http()]);
    command
}

fn run(agent: &Agent, arguments: &[&str]) -> Output {
    program(agent, arguments).output().unwrap()
}

#[tokio::test]
async fn the_program_reads_writes_and_lists() {
    let agent = Agent::start().await;
    assert_eq!(run(&agent, &["get", "a/b"]).status.code(), Some(3));
    assert_eq!(run(&agent, &["put", "a/b", "-x y"]).status.code(), Some(0));
    let got = run(&agent, &["get", "a/b"]);
    assert_eq!((got.status.code(), &*got.stdout), (Some(0), &b"-x y\n"[..]));
    let mut put = program(&agent, &["put", "a/c", "-"]);
    let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&[0, 255]).unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(run(&agent, &["get", "a/c"]).stdout, [0, 255, b'\n']);
    let told: Value =
        serde_json::from_slice(&run(&agent, &["get", "a/b", "--json"]).stdout).unwrap();
    assert_eq!(
        (&told["key"], &told["value"]),
        (&"a/b".into(), &"-x y".into())
    );
    let told: Value =
        serde_json::from_slice(&run(&agent, &["get", "a/c", "--json"]).stdout).unwrap();
    assert_eq!(told["base64"], "AP8=");
    // What the help says that there is.
    let keys: Vec<_> = told.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["base64", "flags", "index", "key", "session"]);
    let help = run(&agent, &["--help"]).stdout;
    let help = String::from_utf8(help).unwrap();
    assert!(keys.iter().all(|key| help.contains(&**key)), "{help}");
    assert_eq!(run(&agent, &["list", "a/"]).stdout, b"a/b\na/c\n");
    assert_eq!(run(&agent, &["delete", "a/b"]).status.code(), Some(0));
    assert_eq!(run(&agent, &["list", "b"]).status.code(), Some(3));
    assert_eq!(run(&agent, &["get", ".."]).status.code(), Some(2));
}

#[tokio::test]
async fn a_value_without_end_is_refused_before_it_fills_the_memory() {
    let agent = Agent::start().await;
    let put = program(&agent, &["put", "a", "-"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -v 4000000 && exec "$0" "$@""#]);
    limited.arg(put.get_program()).args(put.get_args());
    let endless = std::fs::File::open("/dev/zero").unwrap();
    let output = limited.env_clear().stdin(endless).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("kv_max_value_size"), "{said}");
}

#[tokio::test]
async fn the_program_prints_each_value_until_it_is_interrupted() {
    let agent = Agent::start().await;
    let kv = kv(&agent);
    kv.put("a", "1").await.unwrap();
    let mut child = program(&agent, &["watch", "a", "--json"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let out = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            _ = tell.blocking_send(line);
        }
    });
    let mut next = async || -> Value {
        let line = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(next().await["value"], "1");
    kv.put("a", "2").await.unwrap();
    assert_eq!(next().await["value"], "2");
    kv.delete("a").await.unwrap();
    assert_eq!(next().await["value"], Value::Null);
    signal(child.id(), "INT");
    let status = wait_for("its end", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}
