//! Our OCI runtime in dockerd's configuration: put in and taken out, with dockerd running.
//!
//! dockerd reads its file again on SIGHUP, and containers do not notice. It answers a signal with nothing, and what it
//! does not like it says in its own log alone; so what it came to is read off `GET /info`. A file that dockerd does not
//! take up would keep it from its next start: then the old one is put back. Nothing is touched before everything that
//! can be looked at has been.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::edge::config_file::ConfigFile;
use crate::edge::docker::Docker;
use crate::edge::dockerd_process::{self, Dockerd};
use crate::edge::wire::Engine;
use crate::model::endpoint::OciRuntime;
use crate::model::fault::Fault;
use crate::plan::daemon_config::{self, Installed};
use crate::plan::runtime::RUNTIME;

/// How long dockerd may take to do as its file says.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// The runtime that every dockerd knows, whatever its file says.
const STOCK: &str = "runc";

/// How many containers are inspected at a time.
const INSPECTIONS: usize = 8;

/// A dockerd with its configuration, and what is to be found where.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) config: PathBuf,
    pub(crate) engine: Engine,
    /// The folder of our programs.
    pub(crate) programs: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
}

/// Makes our runtime known to dockerd; answers what there is to say of it.
///
/// # Errors
/// Configuration and dockerd are as they were.
pub(crate) async fn install(site: &Site) -> Result<Vec<String>, Fault> {
    let told = async {
        let program = site.programs.join("calico-runtime");
        check_program(&program)?;
        let wanted = site.runtime(&program)?;
        let file = ConfigFile::at(&site.config)?;
        let place = file.path().display();
        let old = file.read()?;
        let plan = daemon_config::install(old.as_deref().unwrap_or_default(), &wanted)
            .map_err(|fault| fault.during(&format!("read {place}")))?;
        let by_hand = format!("put {} into \"runtimes\" of {place}", daemon_config::entry(&wanted));
        let running = site.running(&file, old.as_deref(), &by_hand).await?;
        if let Some((dockerd, _)) = &running
            && !dockerd.sees(&program, &program)
        {
            return Err(Fault::Refusal(format!(
                "{dockerd} does not find {}, as when this runs in a container and dockerd does not: copy calico-node and \
                 calico-runtime to where dockerd runs, and do this there",
                program.display()
            )));
        }

        let (new, mut told) = match plan {
            Installed::Already => (None, vec![format!("{place} has the runtime {RUNTIME} already")]),
            Installed::Changed { text, replaced } => {
                let mut told = vec![format!("the runtime {RUNTIME} was put into {place}")];
                told.extend(replaced.map(|old| format!("it took the place of another entry of that name: {old}")));
                (Some(text), told)
            }
        };
        let Some((dockerd, docker)) = running else {
            if let Some(new) = &new {
                file.replace(old.as_deref(), Some(new))?;
            }
            told.push(site.not_running());
            return Ok(told);
        };
        let wanted = Some(wanted);
        if new.is_some() || known(&docker).await? != wanted {
            check_others(&docker, new.as_deref().or(old.as_deref()).unwrap_or_default()).await?;
            let change = Change { file: &file, old: old.as_deref(), new: new.as_deref() };
            change.carry_out(&dockerd, &docker, |seen| *seen == wanted).await?;
        }
        told.push(format!("{dockerd} has it"));
        Ok(told)
    };
    told.await.map_err(|fault: Fault| fault.during(&format!("install the runtime {RUNTIME}")))
}

/// Takes our runtime away from dockerd; answers what there is to say of it. Containers that are made for it are a reason
/// against it, unless it is forced.
///
/// # Errors
/// Configuration and dockerd are as they were.
pub(crate) async fn uninstall(site: &Site, force: bool) -> Result<Vec<String>, Fault> {
    let told = async {
        let file = ConfigFile::at(&site.config)?;
        let place = file.path().display();
        let old = file.read()?;
        let removed = daemon_config::uninstall(old.as_deref().unwrap_or_default())
            .map_err(|fault| fault.during(&format!("read {place}")))?;
        let by_hand = format!("take \"{RUNTIME}\" out of \"runtimes\" in {place}");
        let running = site.running(&file, old.as_deref(), &by_hand).await?;

        let mut told = vec![match &removed {
            Some(_) => format!("the runtime {RUNTIME} was taken out of {place}"),
            None => format!("{place} has no runtime {RUNTIME}"),
        }];
        let Some((dockerd, docker)) = running else {
            if let Some(removed) = removed {
                file.replace(old.as_deref(), Some(&removed.bare.unwrap_or(removed.emptied)))?;
                told.push(
                    "containers that are made for it do not start without it; they could not be looked for".to_owned(),
                );
            }
            told.push(site.not_running());
            return Ok(told);
        };
        // A reload does not change it: dockerd would end without the runtime.
        if docker.runtimes().await?.default == RUNTIME {
            return Err(Fault::Refusal(format!(
                "it is the default runtime of {dockerd} now, which would end without it: take it out of the file and the flags, and start that dockerd again first"
            )));
        }
        if removed.is_some() || known(&docker).await?.is_some() {
            let emptied = removed.as_ref().map(|removed| removed.emptied.as_slice());
            check_others(&docker, emptied.or(old.as_deref()).unwrap_or_default()).await?;
            let ours = BTreeSet::from([RUNTIME.to_owned()]);
            in_the_way(&users(&docker, &ours).await?, force)?;
            let change = Change { file: &file, old: old.as_deref(), new: emptied };
            change.carry_out(&dockerd, &docker, Option::is_none).await?;
            // Who was made since would be found out at its next start. From here on dockerd makes none for it.
            match users(&docker, &ours).await.and_then(|users| in_the_way(&users, force)) {
                Ok(list) => told.extend(list),
                Err(refusal) => return Err(change.take_back(&dockerd, &refusal)),
            }
            if let Some(bare) = removed.as_ref().and_then(|removed| removed.bare.as_deref()) {
                file.replace(emptied, Some(bare))?;
            }
        }
        told.push(format!("{dockerd} has none of that name"));
        Ok(told)
    };
    told.await.map_err(|fault: Fault| fault.during(&format!("uninstall the runtime {RUNTIME}")))
}

/// What there is to say of containers that are made for our runtime, where it goes all the same.
fn in_the_way(users: &[String], force: bool) -> Result<Option<String>, Fault> {
    if users.is_empty() {
        return Ok(None);
    }
    let list = format!("{} made for it and cannot start without it: {}", are(users.len()), users.join(", "));
    if !force {
        return Err(Fault::Refusal(format!("{list}; remove or recreate them first, or give --force")));
    }
    Ok(Some(list))
}

fn are(containers: usize) -> String {
    if containers == 1 { "1 container is".to_owned() } else { format!("{containers} containers are") }
}

fn check_program(program: &Path) -> Result<(), Fault> {
    let doing = || format!("find the program {}", program.display());
    let found = std::fs::metadata(program)
        .map_err(|error| Fault::Refusal(format!("{}: {error}; it belongs beside calico-node", doing())))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(Fault::Refusal(format!("{}: it is no program", doing())));
    }
    Ok(())
}

/// Whether a letter of a path means itself in a shell. dockerd calls a runtime that has arguments by a script in which
/// nothing is quoted (moby `daemon/runtime_unix.go`, `writeRuntimeScript` and those before it).
fn is_plain(letter: char) -> bool {
    letter.is_alphanumeric() || "/._-+:@%,".contains(letter)
}

/// Our runtime as dockerd knows it.
async fn known(docker: &Docker) -> Result<Option<OciRuntime>, Fault> {
    Ok(docker.runtimes().await?.known.remove(RUNTIME))
}

/// The containers that are made for some runtimes, by name and short id.
async fn users(docker: &Docker, runtimes: &BTreeSet<String>) -> Result<Vec<String>, Fault> {
    let inspections = stream::iter(docker.list().await?).map(|listed| async move {
        // `None`: it has gone meanwhile.
        let found = docker.inspect(listed.id.as_str()).await?.filter(|found| runtimes.contains(&found.runtime));
        Ok::<_, Fault>(found.map(|found| format!("{} ({})", found.name, found.id.short())))
    });
    let found: Vec<Option<String>> = inspections.buffered(INSPECTIONS).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Refuses what would take a runtime away that dockerd brings itself and somebody needs. 20.10 replaces all that it knows by
/// what its file names, once that names any, and runc: containers that are made for another one start no more, and where its
/// default is another one it ends (moby `daemon/reload_unix.go`, and seen).
///
/// # Errors
/// `Refusal`, with who needs it.
async fn check_others(docker: &Docker, text: &[u8]) -> Result<(), Fault> {
    let Some(named) = daemon_config::named(text) else { return Ok(()) };
    let known = docker.runtimes().await?;
    let stays = |name: &String| named.contains(name) || name == STOCK || name == RUNTIME;
    let lost: BTreeSet<String> = known.known.into_keys().filter(|name| !stays(name)).collect();
    let mut needed = users(docker, &lost).await?;
    if lost.contains(&known.default) {
        needed.insert(0, format!("dockerd itself, whose default is {}", known.default));
    }
    if needed.is_empty() {
        return Ok(());
    }
    let lost: Vec<String> = lost.into_iter().collect();
    Err(Fault::Refusal(format!(
        "dockerd may forget the runtimes {}, which are not in its file, when it reads that again, and they are needed by {}; nothing was changed. \
         Do this while dockerd is stopped: at its start it has them all",
        lost.join(", "),
        needed.join(", ")
    )))
}

impl Site {
    /// # Errors
    /// `Refusal`: dockerd cannot be told one of the paths.
    fn runtime(&self, program: &Path) -> Result<OciRuntime, Fault> {
        let text = |path: &Path| {
            let whole = std::path::absolute(path).map_err(|error| error.to_string());
            let text = whole.and_then(|whole| {
                let text = whole.into_os_string().into_string().map_err(|_| "it is no UTF-8".to_owned())?;
                match text.chars().find(|letter| !is_plain(*letter)) {
                    None => Ok(text),
                    Some(letter) => Err(format!(
                        "dockerd writes it into a shell script as it is, and {letter:?} means something there; name a path of \
                         letters, digits and /._-+:@%, alone"
                    )),
                }
            });
            text.map_err(|cause| Fault::Refusal(format!("name {} to dockerd: {cause}", path.display())))
        };
        let args = ["--run-dir".to_owned(), text(&self.run_dir)?, "--state-dir".to_owned(), text(&self.state_dir)?];
        Ok(OciRuntime { path: text(program)?, args: args.to_vec() })
    }

    /// The dockerd that runs, once it answers; `None`: none does.
    ///
    /// # Errors
    /// It cannot be told to read its file, or reads another one.
    async fn running(
        &self,
        file: &ConfigFile,
        config: Option<&[u8]>,
        by_hand: &str,
    ) -> Result<Option<(Dockerd, Docker)>, Fault> {
        let pidfile = config.and_then(daemon_config::pidfile).map(PathBuf::from);
        let found = dockerd_process::find(&self.engine, pidfile.as_deref()).await.map_err(|fault| {
            Fault::Refusal(format!(
                "{fault}; nothing was changed. By hand: {by_hand}, and send dockerd SIGHUP (systemctl reload docker, or \
                 kill -HUP with its process id)"
            ))
        })?;
        let Some(dockerd) = found else { return Ok(None) };
        let theirs = dockerd.config_file();
        if !dockerd.sees(&theirs, file.path()) {
            return Err(Fault::Refusal(format!(
                "{dockerd} reads {} and not {}: name its file by --docker-config",
                theirs.display(),
                file.path().display()
            )));
        }
        // 20.10 forgets the runtimes of its command line when its file names some (seen at `GET /info`), and containers that
        // are made for them start no more.
        if dockerd.has_option("--add-runtime") {
            return Err(Fault::Refusal(format!(
                "{dockerd} was started with --add-runtime, and its file is to name runtimes as well, of which it would keep \
                 the latter alone; nothing was changed. Move the runtimes of that flag to \"runtimes\" in {}, restart \
                 dockerd, and try again",
                file.path().display()
            )));
        }
        // A dockerd that is still starting would be ended by the signal.
        let docker = Docker::new(&self.engine.to_string());
        docker.ping().await?;
        Ok(Some((dockerd, docker)))
    }

    fn not_running(&self) -> String {
        format!("dockerd does not run (nobody listens at {}): it reads its file when it starts", self.engine)
    }
}

/// A change of dockerd's configuration file.
struct Change<'a> {
    file: &'a ConfigFile,
    old: Option<&'a [u8]>,
    /// `None`: the file says already what it should.
    new: Option<&'a [u8]>,
}

impl Change<'_> {
    /// Writes the new text and waits until dockerd has taken it up.
    ///
    /// # Errors
    /// dockerd has not; then the file is as it was, and dockerd was told so.
    async fn carry_out(
        &self,
        dockerd: &Dockerd,
        docker: &Docker,
        is_done: impl Fn(&Option<OciRuntime>) -> bool,
    ) -> Result<(), Fault> {
        if self.new.is_some() {
            self.file.replace(self.old, self.new)?;
        }
        let cause = match dockerd.reload() {
            Ok(()) if taken_up(dockerd, docker, is_done).await => return Ok(()),
            Ok(()) => self.why_not(dockerd),
            Err(fault) => fault.to_string(),
        };
        let place = self.file.path().display();
        if self.new.is_none() {
            return Err(Fault::World(format!("{cause}; {place} says what it should and was not changed")));
        }
        Err(Fault::World(self.undo(dockerd, &cause)))
    }

    /// Puts back what was carried out, because of a refusal; answers that, with what has become of the file.
    fn take_back(&self, dockerd: &Dockerd, refusal: &Fault) -> Fault {
        let cause = refusal.to_string();
        Fault::Refusal(if self.new.is_some() { self.undo(dockerd, &cause) } else { cause })
    }

    fn undo(&self, dockerd: &Dockerd, cause: &str) -> String {
        match self.file.replace(self.new, self.old).and_then(|()| dockerd.reload()) {
            Ok(()) => format!("{cause}; {} is as it was before", self.file.path().display()),
            Err(fault) => format!("{cause}; it could not be put back as it was before: {fault}"),
        }
    }

    /// Why dockerd did not do as its file says, as far as can be seen from here.
    fn why_not(&self, dockerd: &Dockerd) -> String {
        if dockerd.has_ended() {
            return format!("{dockerd} has ended when it read the file again; its log says why");
        }
        format!(
            "{dockerd} did not take up what {} says within {PATIENCE:?}; its log says why (journalctl -u docker): often \
             something else in the file is wrong",
            self.file.path().display()
        )
    }
}

/// Whether dockerd's runtimes come to be as they should.
async fn taken_up(dockerd: &Dockerd, docker: &Docker, is_done: impl Fn(&Option<OciRuntime>) -> bool) -> bool {
    let taken_up = async {
        loop {
            match known(docker).await {
                Ok(seen) if is_done(&seen) => return true,
                Err(_) if dockerd.has_ended() => return false,
                // It answers again, or the time is up.
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, taken_up).await.unwrap_or(false)
}
