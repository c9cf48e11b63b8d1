//! Root is needed to bind port 53, and for nothing after that.

use std::ffi::CString;

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Uid, User, initgroups, setgid, setuid},
};

/// No program that is run from here on gives more rights than this one has. For the thread
/// that calls it and those that it starts: to be called before there are others.
pub(crate) fn gain_none() {
    // An old kernel does not know of it; nothing is run anyway.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_no_new_privs();
}

/// As many descriptors as this process may have: the usual 1,024 are for programs that use
/// select(2), and hundreds of questions to silent upstreams need more.
pub(crate) fn take_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // What is left is shared out as it is.
        _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whom a name means.
pub(crate) fn user(name: &str) -> Result<User, String> {
    let found = User::from_name(name).map_err(|error| format!("--user {name}: {error}"))?;
    found.ok_or_else(|| format!("--user {name}: there is no such user; name one of this machine"))
}

/// Becomes this user, for good. Nobody but root can.
pub(crate) fn drop_to(name: &str) -> Result<(), String> {
    let failed = |error: nix::Error| format!("--user {name}: {error}");
    let user = user(name)?;
    if Uid::effective() == user.uid {
        return Ok(());
    }
    // Groups first: afterwards they are not ours to change. All those of the user: a token
    // file may be for one of them alone, and is read again later.
    let own = CString::new(name).map_err(|error| format!("--user {name}: {error}"))?;
    initgroups(&own, user.gid).map_err(failed)?;
    setgid(user.gid).map_err(failed)?;
    setuid(user.uid).map_err(failed)?;
    if Uid::current().is_root() || Uid::effective().is_root() {
        return Err(format!("--user {name}: still root"));
    }
    Ok(())
}
