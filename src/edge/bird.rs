//! BIRD: started, fed with checked configuration over its control socket, asked for its sessions, ended so that its peers
//! keep the routes.
//!
//! The protocol of the socket is the one that birdc speaks: a line begins with a code of four digits and a blank for the
//! last line of an answer or a dash for one that others follow; a line that begins with a blank goes on with the code of
//! the line before. Codes from 8000 on are errors. Source: BIRD 2.0.12, nest/cli.c and doc/reply_codes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::edge::exec::{Running, Spawner, Start, run};
use crate::edge::files::if_there;
use crate::model::control::{BgpSession, PeerKind};
use crate::model::fault::Fault;

/// How long BIRD may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long BIRD may take to open its socket, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether BIRD does its work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum BirdState {
    /// None is run on this host.
    #[default]
    Off,
    /// It runs with the configuration that the datastore asks for.
    Up,
    /// Why it does not.
    Down(String),
}

impl BirdState {
    /// Why it does not do it, where it should.
    pub(crate) fn missing(&self) -> Option<&str> {
        match self {
            BirdState::Off => Some("it has not been started yet"),
            BirdState::Up => None,
            BirdState::Down(why) => Some(why),
        }
    }
}

/// A BIRD of ours.
#[derive(Debug)]
pub(crate) struct Bird {
    spawner: Spawner,
    run_dir: PathBuf,
    daemon: Option<Running>,
    /// The configuration that it runs with.
    loaded: Option<String>,
}

/// One line of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    code: u16,
    text: String,
}

impl Bird {
    pub(crate) fn new(spawner: Spawner, run_dir: &Path) -> Self {
        Bird { spawner, run_dir: run_dir.to_owned(), daemon: None, loaded: None }
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join("bird.ctl")
    }

    /// Makes BIRD run with a configuration; does nothing if it does already.
    ///
    /// # Errors
    /// `World` if BIRD refuses the configuration (it goes on with the one before) or does not run.
    pub(crate) async fn load(&mut self, configuration: &str) -> Result<(), Fault> {
        if self.daemon.is_some() && self.loaded.as_deref() == Some(configuration) {
            return Ok(());
        }
        let (file, aside) = (self.run_dir.join("bird.conf"), self.run_dir.join("bird.conf.new"));
        let fault = |error: std::io::Error| Fault::World(format!("write {}: {error}", file.display()));
        std::fs::write(&aside, configuration).map_err(fault)?;
        run("bird", &["-p", "-c", &aside.to_string_lossy()], "")
            .await
            .map_err(|fault| fault.during("check BIRD's configuration"))?;
        std::fs::rename(&aside, &file).map_err(fault)?;
        if self.daemon.is_none() {
            self.start(&file).await?;
        } else {
            // It may take it in though no answer comes.
            self.loaded = None;
            ask(&self.socket(), &format!("configure \"{}\"", file.display())).await?;
        }
        self.loaded = Some(configuration.to_owned());
        Ok(())
    }

    async fn start(&mut self, file: &Path) -> Result<(), Fault> {
        let socket = self.socket();
        // Left by a BIRD that was killed; it would not open its own.
        if_there(std::fs::remove_file(&socket))
            .map_err(|error| Fault::World(format!("remove {}: {error}", socket.display())))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        // -R: a graceful restart, so that what peers and kernel still hold is kept until the sessions are up again.
        let args = vec!["-f".to_owned(), "-R".to_owned(), "-c".to_owned(), text(file), "-s".to_owned(), text(&socket)];
        let start = Start { program: "bird".to_owned(), args, input: false };
        let mut daemon = self.spawner.start(start).await?;
        let opened = async {
            while ask(&socket, "show status").await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = opened => {}
            ended = daemon.wait() => return Err(Fault::World(format!("start BIRD: {ended}"))),
            () = tokio::time::sleep(PATIENCE) => {
                daemon.end(Duration::ZERO).await;
                return Err(Fault::World(format!("start BIRD: no answer on {} within {} s", socket.display(), PATIENCE.as_secs())));
            }
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Waits until BIRD ends by itself, and answers how; for ever while none runs.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn fallen(&mut self) -> String {
        let Some(daemon) = &mut self.daemon else { return std::future::pending().await };
        let how = daemon.wait().await;
        self.daemon = None;
        how
    }

    /// Ends BIRD so that its peers keep our routes: by a graceful restart. A plain TERM would make them withdraw at once.
    pub(crate) async fn end(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        match ask(&self.socket(), "graceful restart").await {
            Ok(_) if tokio::time::timeout(PATIENCE, daemon.wait()).await.is_ok() => return,
            Ok(_) => tracing::warn!("BIRD did not end after its graceful restart began; ending it"),
            Err(fault) => tracing::warn!(%fault, "BIRD could not be told to restart gracefully; ending it"),
        }
        daemon.end(Duration::from_secs(2)).await;
    }
}

/// Sends one command; answers its lines.
async fn ask(socket: &Path, command: &str) -> Result<Vec<Line>, Fault> {
    let fault = |cause: String| Fault::World(format!("tell BIRD at {} to {command}: {cause}", socket.display()));
    let talk = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| fault(error.to_string()))?;
        let mut stream = BufReader::new(stream);
        read_answer(&mut stream).await.map_err(fault)?;
        stream
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())
            .await
            .map_err(|error| fault(error.to_string()))?;
        read_answer(&mut stream).await.map_err(fault)
    };
    let lines = tokio::time::timeout(ANSWER_TIMEOUT, talk)
        .await
        .map_err(|_| fault(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))??;
    match lines.iter().find(|line| line.code >= 8000) {
        Some(error) => Err(fault(format!("{:04} {}", error.code, error.text))),
        None => Ok(lines),
    }
}

async fn read_answer(stream: &mut BufReader<UnixStream>) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    loop {
        let mut text = String::new();
        let length = stream.read_line(&mut text).await.map_err(|error| error.to_string())?;
        if length == 0 {
            return Err("it closed the connection".to_owned());
        }
        let (line, last) = read_line(text.trim_end_matches('\n'), lines.last().map_or(0, |line| line.code))?;
        lines.push(line);
        if last {
            return Ok(lines);
        }
    }
}

/// One line and whether it is the last of its answer; `code` is that of the line before.
fn read_line(text: &str, code: u16) -> Result<(Line, bool), String> {
    if let Some(rest) = text.strip_prefix([' ', '+']) {
        return Ok((Line { code, text: rest.to_owned() }, false));
    }
    let strange = || format!("it said {text:?}");
    let (digits, rest) = text.split_at_checked(4).ok_or_else(strange)?;
    let code = digits.parse().map_err(|_| strange())?;
    let last = rest.starts_with(' ') || rest.is_empty();
    Ok((Line { code, text: rest.get(1..).unwrap_or_default().to_owned() }, last))
}

/// The BGP sessions of a running BIRD.
pub(crate) async fn session_status(socket: &Path) -> Result<Vec<BgpSession>, Fault> {
    let lines = ask(socket, "show protocols").await?;
    Ok(lines.iter().filter(|line| line.code == 1002).filter_map(|line| read_session(&line.text)).collect())
}

/// A line of `show protocols`: name, protocol, table, state, since, info.
fn read_session(line: &str) -> Option<BgpSession> {
    let mut columns = line.split_whitespace();
    let name = columns.next()?;
    if columns.next()? != "BGP" {
        return None;
    }
    let _table = columns.next()?;
    let (kind, peer) = peer_of(name)?;
    let (state, since) = (columns.next()?.to_owned(), columns.next()?.to_owned());
    let info = columns.collect::<Vec<_>>().join(" ");
    Some(BgpSession { name: name.to_owned(), peer, kind, state, since, info })
}

/// What our names of protocols say: why there is the peer, and its address.
fn peer_of(name: &str) -> Option<(PeerKind, IpAddr)> {
    let (kind, rest) = [("Mesh_", PeerKind::Mesh), ("Global_", PeerKind::Global), ("Node_", PeerKind::Node)]
        .into_iter()
        .find_map(|(prefix, kind)| Some((kind, name.strip_prefix(prefix)?)))?;
    let address = rest.replace('_', ".").parse().or_else(|_| rest.replace('_', ":").parse()).ok()?;
    Some((kind, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_birds_answers_are_read() {
        assert_eq!(
            read_line("0001 BIRD 2.0.12 ready.", 0),
            Ok((Line { code: 1, text: "BIRD 2.0.12 ready.".to_owned() }, true))
        );
        assert_eq!(read_line("1002-kernel1", 0).map(|(line, last)| (line.code, last)), Ok((1002, false)));
        assert_eq!(read_line(" more", 1002), Ok((Line { code: 1002, text: "more".to_owned() }, false)));
        assert_eq!(read_line("0000 ", 1002).map(|(line, last)| (line.code, last)), Ok((0, true)));
        assert!(read_line("x", 0).is_err());
    }

    #[test]
    fn a_session_is_read_from_birds_own_line() {
        let session =
            read_session("Mesh_172_25_0_2 BGP        ---        up     07:11:02.123  Established   ").unwrap();
        assert_eq!((session.peer.to_string().as_str(), session.kind), ("172.25.0.2", PeerKind::Mesh));
        assert_eq!((session.state.as_str(), session.info.as_str()), ("up", "Established"));
        let session =
            read_session("Global_fd00__1 BGP --- start 07:11:02.123 Active Socket: Connection refused").unwrap();
        assert_eq!(
            (session.peer.to_string().as_str(), session.info.as_str()),
            ("fd00::1", "Active Socket: Connection refused")
        );
        assert_eq!(read_session("device1    Device     ---        up     07:11:01.555  "), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bird_runs_with_what_it_is_given_and_keeps_it_when_the_next_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let mut bird = Bird::new(Spawner::new().unwrap(), folder.path());
        // No protocol that touches the kernel: this BIRD only has its socket.
        let first = "router id 10.0.0.1;\nprotocol device { disabled; }\n";
        bird.load(first).await.unwrap();
        let wrong = bird.load("router id nonsense;\n").await.unwrap_err().to_string();
        assert!(wrong.contains("configuration"), "{wrong}");
        bird.load(&format!("{first}# changed\n")).await.unwrap();
        assert_eq!(session_status(&bird.socket()).await, Ok(Vec::new()));
        bird.end().await;
        assert!(ask(&bird.socket(), "show status").await.is_err());
    }
}
