//! What is wrong with a stub that serves: told on stderr, and kept for the admin address.

use proconsul::{Alert, AlertRule, stub::Control};
use tokio::sync::watch;

use crate::{args::Output, output};

/// Looks for the usual alerts, for ever; from anew whenever `reloaded` says that the resolver
/// is another one.
pub(crate) async fn look(
    control: Control,
    mut reloaded: watch::Receiver<()>,
    active: watch::Sender<Vec<Alert>>,
    form: &Output,
) {
    loop {
        // Within a runtime, as here, that is never refused.
        let Ok(mut alerts) = control.resolver().alerts(AlertRule::usual()) else {
            return;
        };
        loop {
            tokio::select! {
                alert = alerts.next() => {
                    output::remark(form, &format!("proconsul: alert: {alert}"));
                    active.send_replace(alerts.active());
                }
                changed = reloaded.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            }
        }
        active.send_replace(Vec::new());
    }
}
