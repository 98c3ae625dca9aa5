//! TLS: certificates as an operator keeps them in files, and a stream whose client speaks TLS.
//!
//! A session has no task and no thread of its own: it is driven by whoever reads or writes its stream, under a lock that
//! is never held across a wait. So its operations take `&self` as those of the other wires do, and an idle stream costs
//! a session and a buffer of 4 KiB. tokio-rustls was not taken: it wants `&mut` for both directions at once.
//!
//! Invariants: TLS 1.2 at least. Only HTTP/1.1 is offered, because a hijacked stream is impossible in HTTP/2. The two
//! directions end apart: a client's close_notify ends what it sends and nothing else, and so does ours. A FIN without
//! close_notify is as good, as it is to dockerd (Go crypto/tls/conn.go, `readRecordOrCCS`): Python's clients say no more. A
//! stream that *we* cut never says close_notify, so that cut is told from ended. Every client is verified anew: sessions are
//! not resumed, so a certificate that is no longer trusted lets nobody in.
//!
//! Limits: client certificates need version 3 and, if they name extended usages at all, clientAuth among them, as those
//! of Docker's documentation do. Lists of revoked certificates are not read.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio::net::TcpStream;

use super::clock::timeout;
use crate::model::fault::Fault;

/// How long a client may take until both sides know each other (Go's clients take the same bound).
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client that was turned away may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// How much is encrypted at once: what rustls holds of what is not sent yet.
const CHUNK_BYTES: usize = 64 * 1024;

/// After how many reads that bring no content (a client may send such records without end) others get their turn.
const RECORDS_AT_ONCE: usize = 16;

/// Where an operator keeps our certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    /// Our certificate, and those between it and its authority.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// The authorities of the clients. `None`: clients are not asked for a certificate.
    pub(crate) clients: Option<PathBuf>,
}

/// What was in the files at some time.
#[derive(Debug)]
struct Identity {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
}

/// The files and what was last read from them. A stream keeps what it began with.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: CertificateFiles,
    identity: RwLock<Arc<Identity>>,
}

impl Certificates {
    /// # Errors
    /// Everything that is wrong, each with its file and its cause.
    pub(crate) fn load(files: CertificateFiles) -> Result<Self, Vec<String>> {
        let identity = RwLock::new(Arc::new(Identity::load(&files)?));
        Ok(Certificates { files, identity })
    }

    /// Reads the files again, for the clients from now on.
    ///
    /// # Errors
    /// `World` with everything that is wrong; what was read before stays in force.
    pub(crate) fn reload(&self) -> Result<(), Fault> {
        let fresh = Identity::load(&self.files).map_err(|faults| Fault::World(faults.join("; ")))?;
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    /// The stream of a client that is to speak TLS.
    pub(crate) fn accept(&self, socket: TcpStream) -> io::Result<TlsStream> {
        let identity = Arc::clone(&self.identity.read().unwrap_or_else(PoisonError::into_inner));
        let session = ServerConnection::new(Arc::clone(&identity.config)).map_err(io::Error::other)?;
        Ok(TlsStream { socket, session: Mutex::new(session), identity })
    }
}

impl Identity {
    fn load(files: &CertificateFiles) -> Result<Self, Vec<String>> {
        let certificates = read_certificates("certificate", &files.certificate);
        let key = read_key(&files.key);
        let clients = files
            .clients
            .as_ref()
            .map(|path| Ok((path, read_certificates("certificate authorities", path)?)))
            .transpose();
        let (certificates, key, clients) = match (certificates, key, clients) {
            (Ok(certificates), Ok(key), Ok(clients)) => (certificates, key, clients),
            (certificates, key, clients) => {
                return Err([certificates.err(), key.err(), clients.err()].into_iter().flatten().collect());
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = configure(&provider, certificates.clone(), key, clients).map_err(|(what, cause)| {
            vec![match what {
                Some(clients) => format!("use the certificate authorities {}: {cause}", clients.display()),
                None => format!(
                    "use the certificate {} with the key {}: {cause}",
                    files.certificate.display(),
                    files.key.display()
                ),
            }]
        })?;
        let certificate = certificates.into_iter().next().unwrap_or_else(|| Vec::new().into());
        Ok(Identity { config: Arc::new(config), certificate })
    }

    /// Whether our certificate carries a name, be it by a wildcard.
    fn is_named(&self, name: &str) -> bool {
        ServerName::try_from(name).is_ok_and(|name| {
            ParsedCertificate::try_from(&self.certificate)
                .is_ok_and(|certificate| rustls::client::verify_server_name(&certificate, &name).is_ok())
        })
    }
}

/// What a server does with the contents of the files; the cause of a failure, and the file of authorities if it is that
/// one's fault.
fn configure<'a>(
    provider: &Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<(&'a PathBuf, Vec<CertificateDer<'static>>)>,
) -> Result<ServerConfig, (Option<&'a PathBuf>, String)> {
    let ours = |error: rustls::Error| (None, error.to_string());
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        // TLS 1.2 and 1.3: rustls has no older ones.
        .with_safe_default_protocol_versions()
        .map_err(ours)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((path, authorities)) => {
            let theirs = |cause: String| (Some(path), cause);
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority).map_err(|error| theirs(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| theirs(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(ours)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn read_file(what: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("read the {what} {}: {error}", path.display()))
}

fn read_certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_file(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let fault = |cause: &str| format!("read the {what} {}: {cause}", path.display());
    match found {
        Ok(found) if found.is_empty() => Err(fault("no -----BEGIN CERTIFICATE----- is in it: it must be in PEM form")),
        Ok(found) => Ok(found),
        Err(error) => Err(fault(&error.to_string())),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read_file("key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
        let cause = match error {
            rustls::pki_types::pem::Error::NoItemsFound if is_encrypted => {
                "it is encrypted: it must be one without a passphrase".to_owned()
            }
            rustls::pki_types::pem::Error::NoItemsFound => {
                "no -----BEGIN PRIVATE KEY----- is in it: it must be in PEM form".to_owned()
            }
            error => error.to_string(),
        };
        format!("read the key {}: {cause}", path.display())
    })
}

/// A TCP stream with a session over it.
#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: Mutex<ServerConnection>,
    identity: Arc<Identity>,
}

/// The socket as rustls wants it.
struct Transport<'a>(&'a TcpStream);

impl Read for Transport<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Transport<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn not_tls(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What a handshake waits for.
enum Awaits {
    Nothing,
    Reading,
    Writing,
}

impl TlsStream {
    /// The socket, for what concerns TCP.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether the certificate that this client was shown carries a name.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.identity.is_named(name)
    }

    fn session(&self) -> MutexGuard<'_, ServerConnection> {
        // Nothing that can panic is done with it.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is encrypted, as far as the socket takes it.
    fn send(&self, session: &mut ServerConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut Transport(&self.socket))?;
        }
        Ok(())
    }

    /// Takes what has arrived into the session; 0 is the peer's FIN.
    fn receive(&self, session: &mut ServerConnection) -> io::Result<usize> {
        let count = session.read_tls(&mut Transport(&self.socket))?;
        let processed = session.process_new_packets();
        // An alert that tells the peer what was wrong, or an answer to a change of keys. What cannot be sent now goes out
        // before the next bytes.
        let _ = self.send(session);
        processed.map(|_| count).map_err(not_tls)
    }

    /// Gets to know the client, within 10 s. One that speaks HTTP gets `to_plain`, as it is.
    ///
    /// # Errors
    /// The client is not to be let in; it has been told why.
    pub(crate) async fn handshake(&self, to_plain: &[u8]) -> io::Result<()> {
        let peer = self.socket.peer_addr()?;
        let Err(error) = timeout(HANDSHAKE, self.shake_hands(to_plain)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end of the handshake after {HANDSHAKE:?}")))
        }) else {
            return Ok(());
        };
        // To close with bytes unread would make it a reset, and the client's kernel would throw our words away.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        let _ = timeout(LINGER, self.read_out()).await;
        Err(io::Error::new(error.kind(), format!("{peer}: {error}")))
    }

    async fn shake_hands(&self, to_plain: &[u8]) -> io::Result<()> {
        let mut first = [0];
        // No record of TLS begins with a letter, and every method of HTTP does.
        if self.socket.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
            let _ = self.socket.try_write(to_plain);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks HTTP without TLS"));
        }
        loop {
            match self.step()? {
                Awaits::Nothing => return Ok(()),
                Awaits::Reading => self.socket.readable().await?,
                Awaits::Writing => self.socket.writable().await?,
            }
        }
    }

    /// Goes on with the handshake as far as it goes without waiting.
    fn step(&self) -> io::Result<Awaits> {
        let mut session = self.session();
        loop {
            match self.send(&mut session) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Awaits::Writing),
                sent => sent?,
            }
            if !session.is_handshaking() {
                return Ok(Awaits::Nothing);
            }
            match self.receive(&mut session) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it left during the handshake")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Awaits::Reading),
                received => received?,
            };
        }
    }

    /// Reads and drops what is still coming over TCP.
    async fn read_out(&self) -> io::Result<()> {
        let mut dropped = [0; 1024];
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut dropped) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Waits until [`try_read`](Self::try_read) is worth another try.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        // A request can come with the last bytes of the handshake; the socket would not tell of it again.
        let holds_something = self
            .session()
            .process_new_packets()
            .map_or(true, |state| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed());
        if holds_something { Ok(()) } else { self.socket.readable().await }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Reads what the client has sent; 0 is its end, said by a close_notify or by a FIN alone.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidData` if it is not TLS.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session();
        // What was wrong once stays wrong.
        session.process_new_packets().map_err(not_tls)?;
        let mut reads = 0;
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && reads < RECORDS_AT_ONCE => {
                    self.receive(&mut session)?;
                    reads += 1;
                }
                read => return read,
            }
        }
    }

    /// Encrypts some bytes and sends as much as the socket takes; [`flush`](Self::flush) sends the rest.
    ///
    /// # Errors
    /// `WouldBlock`: nothing was taken, because what was taken before is not sent yet.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session();
        self.send(&mut session)?;
        let count = session.writer().write(&bytes[..bytes.len().min(CHUNK_BYTES)])?;
        match self.send(&mut session) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// Sends all that was taken.
    ///
    /// # Cancel safety
    /// What is not sent when the future is dropped goes out before the next bytes.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        loop {
            match self.send(&mut self.session()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
            self.socket.writable().await?;
        }
    }

    /// Sends our close_notify and our FIN, once all before them has gone; the client may speak on.
    pub(crate) async fn finish(&self) {
        self.session().send_close_notify();
        // Only a peer that is already gone makes these fail, and that shows in the next read.
        if self.flush().await.is_ok() {
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests;
