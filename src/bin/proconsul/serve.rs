//! `proconsul serve`.

use std::process::ExitCode;

use proconsul::{
    Error,
    stub::{Control, Networks, PER_SECOND, Stub, Upstreams},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use crate::{
    admin::{self, Admin},
    alerts,
    args::{Output, Serve, ServeSettings},
    config::{self, File},
    output, privileges, signals,
    systemd::{self, Sockets},
};

pub(crate) async fn run(command: Serve, form: &Output) -> ExitCode {
    // Before the line that says that we answer: whoever reads it may send one.
    let heard = signals::Stop::new().and_then(|stop| Ok((stop, signals::reload()?)));
    let (mut stop, mut reload) = match heard {
        Ok(both) => both,
        Err(failed) => return failed,
    };
    let mut file = match command.sources.file() {
        Ok(file) => file,
        Err(error) => return output::failure(&error, form),
    };
    let settings = command.settings(&file);
    privileges::take_descriptors();
    let stub = match bind(&command, &file, &settings).await {
        Ok(bound) => bound,
        Err(error) => return output::failure(&error, form),
    };
    let control = stub.control();
    let (reloaded, new_resolver) = watch::channel(());
    let (tell, alerts) = watch::channel(Vec::new());
    let mut addresses: Vec<_> = stub.addresses().iter().map(ToString::to_string).collect();
    addresses.dedup();
    let mut line = format!(
        "serving {}. on {} (udp, tcp)",
        control.resolver().domain(),
        addresses.join(", ")
    );
    if let Some(address) = settings.admin {
        let bound = TcpListener::bind(address).await;
        let (address, listener) = match bound.and_then(|bound| Ok((bound.local_addr()?, bound))) {
            Ok(bound) => bound,
            Err(error) => {
                let next = "choose another with --admin, or none";
                let text = format!("{address} cannot be bound: {error}; {next}");
                return output::refused(&text, form);
            }
        };
        line.push_str(&format!(", admin {address}"));
        let admin = Admin {
            control: control.clone(),
            traffic: stub.traffic(),
            listen: stub.addresses(),
            alerts,
        };
        // Ends with the program.
        tokio::spawn(admin::serve(listener, admin));
    }
    if let Some(user) = &settings.user
        && let Err(error) = privileges::drop_to(user)
    {
        return output::refused(&error, form);
    }
    output::remark(form, &line);
    systemd::ready(&line);
    let reloading = async {
        while reload.recv().await.is_some() {
            systemd::reloading();
            let told = match again(&command, &mut file, &settings, &control).await {
                Ok(told) => {
                    reloaded.send_replace(());
                    told
                }
                Err(error) => format!("reload failed, all stays as it was: {error}"),
            };
            output::remark(form, &format!("proconsul: {told}"));
            systemd::ready(&line);
        }
        // There are no signals any more.
        std::future::pending::<()>().await;
    };
    let (first, told) = oneshot::channel();
    let serving = async {
        tokio::select! {
            // Told that it is to stop, it drains; the wait for a second word goes on.
            () = stub.run(async { _ = told.await; systemd::stopping() }) => {}
            () = reloading => {}
            () = alerts::look(control.clone(), new_resolver, tell, form) => {}
        }
        output::saved(&control.resolver(), form).await;
    };
    let stopping = async {
        stop.told().await;
        _ = first.send(());
        stop.told().await;
    };
    tokio::select! {
        () = serving => ExitCode::SUCCESS,
        // Whoever says so twice does not want to wait, neither for answers nor for a disk.
        () = stopping => output::trouble("told to stop twice: what was due is not done"),
    }
}

/// Who is asked for other names, and who may have long replies; an error for each setting that
/// can be refused before anything is bound.
pub(crate) fn checked(settings: &ServeSettings) -> Result<(Upstreams, Networks), Error> {
    if let Some(user) = &settings.user {
        privileges::user(user).map_err(Error::invalid_setting)?;
    }
    let upstreams = Upstreams::parse(&settings.upstream)?.stop_rebind(settings.stop_rebind);
    let trusted = match &settings.trust {
        None => Networks::default(),
        Some(given) => Networks::parse(given)?,
    };
    Ok((upstreams, trusted))
}

async fn bind(command: &Serve, file: &File, settings: &ServeSettings) -> Result<Stub, Error> {
    let (upstreams, trusted) = checked(settings)?;
    let resolver = command.builder(file).build()?;
    resolver.check().await?;
    let sockets = Sockets::handed_over();
    let stub = if sockets.is_empty() {
        Stub::bind(resolver, &settings.listen).await?
    } else {
        Stub::with_sockets(resolver, sockets.udp, sockets.tcp)?
    };
    let stub = stub.forwarding(upstreams);
    limit(&stub.control(), settings, trusted);
    Ok(stub)
}

/// Sets who may have long replies, and how many questions go on, now or with a reload.
fn limit(control: &Control, settings: &ServeSettings, trusted: Networks) {
    control.trust(trusted);
    control.unknown_per_second(settings.unknown_per_second.unwrap_or(PER_SECOND));
    control.forwarded_per_second(settings.forwarded_per_second.unwrap_or(PER_SECOND));
}

/// Reads the configuration again, if that can be read twice, and all files that it names. What
/// is known and the sockets stay; where anything is wrong, all stays.
async fn again(
    command: &Serve,
    file: &mut File,
    before: &ServeSettings,
    control: &Control,
) -> Result<String, Error> {
    let path = command.sources.config_path();
    let once = path.is_some_and(|path| config::is_read_once(&path));
    let fresh = match once {
        true => None,
        false => Some(command.sources.file()?),
    };
    let read = fresh.as_ref().unwrap_or(file);
    let settings = command.settings(read);
    let (upstreams, trusted) = checked(&settings)?;
    let builder = command.builder(read);
    // Tried first: from then on the old one knows nothing.
    builder.clone().build()?.check().await?;
    let resolver = builder.build_after(&control.resolver())?;
    control.replace(resolver, upstreams);
    limit(control, &settings, trusted);
    let mut told = "reloaded".to_owned();
    if once {
        told.push_str("; the configuration is no file, can be read once, and stays");
    }
    if settings.listen != before.listen || settings.admin != before.admin {
        told.push_str("; addresses stay until a restart");
    }
    if let Some(fresh) = fresh {
        *file = fresh;
    }
    Ok(told)
}
