//! Certificates that openssl makes, and clients of rustls on threads of their own.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::edge::exec;
use crate::edge::relay::{End, tunnel};
use crate::edge::wire::Wire;

type Client = StreamOwned<ClientConnection, std::net::TcpStream>;

/// An authority, and what it signed for a server and for a client, in a folder.
struct Signed {
    folder: tempfile::TempDir,
}

impl Signed {
    async fn new() -> Self {
        let signed = Signed { folder: tempfile::tempdir().unwrap() };
        let openssl = async |args: &str| {
            let args = args.replace('@', signed.folder.path().to_str().unwrap());
            exec::run("openssl", &args.split(' ').collect::<Vec<_>>(), "").await.unwrap();
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -subj /CN=ca -days 2 -keyout @/ca.key -out @/ca.pem")).await;
        for (name, extensions) in [
            ("server", "subjectAltName=DNS:docker1,DNS:*.example.org,IP:127.0.0.1"),
            ("client", "extendedKeyUsage=clientAuth"),
        ] {
            std::fs::write(signed.path("extensions"), extensions).unwrap();
            openssl(&format!("req {key} -subj /CN={name} -keyout @/{name}.key -out @/{name}.csr")).await;
            openssl(&format!(
                "x509 -req -in @/{name}.csr -CA @/ca.pem -CAkey @/ca.key -CAcreateserial -days 2 -extfile @/extensions \
                 -out @/{name}.pem"
            ))
            .await;
        }
        signed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            clients: Some(self.path("ca.pem")),
        }
    }

    fn client_config(&self, with_certificate: bool) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(read_certificates("", &self.path("ca.pem")).unwrap().remove(0)).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(if with_certificate {
            let certificate = read_certificates("", &self.path("client.pem")).unwrap();
            builder.with_client_auth_cert(certificate, read_key(&self.path("client.key")).unwrap()).unwrap()
        } else {
            builder.with_no_client_auth()
        })
    }
}

/// A connected pair: what runs on the client's thread, and our end after the handshake.
async fn pair<T: Send + 'static>(
    certificates: &Certificates,
    config: Arc<ClientConfig>,
    client: impl FnOnce(Client) -> T + Send + 'static,
) -> (JoinHandle<T>, Wire, io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = tokio::task::spawn_blocking(move || {
        let socket = std::net::TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let session = ClientConnection::new(config, ServerName::try_from("docker1").unwrap()).unwrap();
        client(StreamOwned::new(session, socket))
    });
    let wire = Wire::accepted_tls(listener.accept().await.unwrap().0, certificates).unwrap();
    let shaken = wire.handshake(b"plain").await;
    (client, wire, shaken)
}

/// The same with a tunnel to an engine behind it.
async fn tunnelled<T: Send + 'static>(
    client: impl FnOnce(Client) -> T + Send + 'static,
) -> (JoinHandle<T>, UnixStream, JoinHandle<(End, Wire)>) {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let (client, wire, shaken) = pair(&certificates, signed.client_config(true), client).await;
    shaken.unwrap();
    let (engine, near) = UnixStream::pair().unwrap();
    let relay = tokio::spawn(async move {
        let end = tunnel(&wire, &Wire::Unix(near), BytesMut::new(), BytesMut::new()).await;
        (end, wire)
    });
    (client, engine, relay)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("no end within 20 s")
}

/// Whatever a client says at the end of what it sends, the engine hears the end, and the reply to it arrives whole.
async fn the_reply_arrives_after(end: fn(&mut Client)) {
    let (client, mut engine, relay) = tunnelled(move |mut client: Client| {
        client.write_all(b"in").unwrap();
        end(&mut client);
        let mut all = Vec::new();
        // A clean end: without a close_notify this is an error.
        client.read_to_end(&mut all).unwrap();
        all
    })
    .await;
    let mut all = Vec::new();
    within(engine.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"in");
    engine.write_all(b"late").await.unwrap();
    engine.shutdown().await.unwrap();
    assert_eq!(within(client).await.unwrap(), b"late");
    drop(engine);
    within(relay).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_close_notify_is_passed_on_and_the_reply_still_arrives() {
    the_reply_arrives_after(|client| {
        client.conn.send_close_notify();
        client.flush().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_fin_without_close_notify_is_passed_on_and_the_reply_still_arrives() {
    the_reply_arrives_after(|client| client.sock.shutdown(std::net::Shutdown::Write).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_end_ends_nothing_of_the_clients() {
    let (client, mut engine, relay) = tunnelled(|mut client: Client| {
        client.read_to_end(&mut Vec::new()).unwrap();
        client.write_all(b"more").unwrap();
        client.flush().unwrap();
        client
    })
    .await;
    engine.shutdown().await.unwrap();
    let mut more = [0; 4];
    within(engine.read_exact(&mut more)).await.unwrap();
    assert_eq!(&more, b"more");
    drop((engine, within(client).await.unwrap()));
    within(relay).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_arrives_though_nothing_follows_it() {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let (written, told) = std::sync::mpsc::channel::<usize>();
    let (client, wire, shaken) = pair(&certificates, signed.client_config(true), move |mut client| {
        client.flush().unwrap();
        let count = told.recv().unwrap();
        let mut read = vec![0; count];
        client.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 1));
        client
    })
    .await;
    shaken.unwrap();
    // Until the client, which does not read, stands in the way.
    let mut count = 0;
    let piece = vec![1; 20_000];
    while timeout(Duration::from_millis(300), wire.write_all(&piece)).await.is_ok_and(|done| done.is_ok()) {
        count += piece.len();
    }
    assert!(count > 0);
    written.send(count).unwrap();
    drop(within(client).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tls_is_an_error_as_often_as_it_is_read() {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let (client, wire, shaken) = pair(&certificates, signed.client_config(true), |mut client| {
        client.flush().unwrap();
        client.sock.write_all(&[0; 64]).unwrap();
        client
    })
    .await;
    shaken.unwrap();
    let mut read = BytesMut::new();
    for _ in 0..3 {
        let error = within(wire.read(&mut read)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    drop(client.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_does_not_look_ended() {
    let (client, engine, relay) = tunnelled(|mut client: Client| client.read_to_end(&mut Vec::new())).await;
    // The relay is gone before the engine is: one that is being run goes on after `abort`, and would pass the end on.
    relay.abort();
    assert!(within(relay).await.unwrap_err().is_cancelled());
    drop(engine);
    within(client).await.unwrap().unwrap_err();

    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let read = |mut client: Client| client.read_to_end(&mut Vec::new());
    let (client, wire, shaken) = pair(&certificates, signed.client_config(true), read).await;
    shaken.unwrap();
    wire.write_all(b"part").await.unwrap();
    wire.reset_on_close();
    drop(wire);
    within(client).await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_go_both_ways_at_once_and_the_last_ones_arrive_without_another_write() {
    const COUNT: usize = 8 << 20;
    let (client, engine, relay) = tunnelled(|mut client: Client| {
        let mut seen = 0;
        let mut sent = 0;
        let mut buffer = vec![0; 1 << 16];
        while seen < COUNT || sent < COUNT {
            if sent < COUNT {
                sent += client.write(&vec![1; (COUNT - sent).min(1 << 14)]).unwrap();
            }
            if seen < COUNT && (sent == COUNT || seen < sent) {
                let count = client.read(&mut buffer).unwrap();
                assert!(count > 0 && buffer[..count].iter().all(|byte| *byte == 2));
                seen += count;
            }
        }
        client.flush().unwrap();
        client
    })
    .await;
    let (mut engine_reads, mut engine_writes) = engine.into_split();
    let mut seen = vec![0; COUNT];
    let down = vec![2; COUNT];
    let (written, read) =
        within(async { tokio::join!(engine_writes.write_all(&down), engine_reads.read_exact(&mut seen)) }).await;
    written.unwrap();
    read.unwrap();
    assert!(seen.iter().all(|byte| *byte == 1));
    drop((engine_reads, engine_writes));
    drop(within(client).await.unwrap());
    within(relay).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_with_the_end_of_the_handshake_is_seen() {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    for _ in 0..20 {
        let ask = |mut client: Client| {
            // rustls sends it in one piece with the last message of the handshake.
            client.write_all(b"ask").unwrap();
            client.flush().unwrap();
            client
        };
        let (client, wire, shaken) = pair(&certificates, signed.client_config(true), ask).await;
        shaken.unwrap();
        let client = client.await.unwrap();
        let mut read = BytesMut::new();
        while read.len() < 3 {
            assert!(within(wire.read(&mut read)).await.unwrap() > 0);
        }
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_certificate_or_speaks_no_tls_does_not_get_in_and_is_told() {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let read = |mut client: Client| client.read_to_end(&mut Vec::new()).unwrap_err().to_string();
    let (client, _wire, shaken) = pair(&certificates, signed.client_config(false), read).await;
    shaken.unwrap_err();
    let told = within(client).await.unwrap();
    assert!(told.contains("CertificateRequired"), "{told}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let wire = Wire::accepted_tls(listener.accept().await.unwrap().0, &certificates).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    let (shaken, read) = tokio::join!(wire.handshake(b"plain"), client.read_to_end(&mut told));
    shaken.unwrap_err();
    read.unwrap();
    assert_eq!(told, b"plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_what_is_right_and_keeps_what_was_before_what_is_wrong() {
    let signed = Signed::new().await;
    let certificates = Certificates::load(signed.files()).unwrap();
    let greet = |mut client: Client| {
        client.flush().unwrap();
        client
    };
    let (client, wire, shaken) = pair(&certificates, signed.client_config(true), greet).await;
    shaken.unwrap();
    for (name, is) in [
        ("docker1", true),
        ("a.example.org", true),
        ("127.0.0.1", true),
        ("docker2", false),
        ("a.b.example.org", false),
        ("", false),
    ] {
        assert_eq!(wire.is_certified_for(name), is, "{name}");
    }

    // The client's certificate with the server's key, then nothing of a certificate, then none at all.
    let bad: [(&str, Option<Vec<u8>>); 3] = [
        ("key", Some(std::fs::read(signed.path("client.pem")).unwrap())),
        ("BEGIN CERTIFICATE", Some(b"junk".to_vec())),
        ("No such file", None),
    ];
    let good = std::fs::read(signed.path("server.pem")).unwrap();
    for (word, content) in bad {
        match content {
            Some(content) => std::fs::write(signed.path("server.pem"), content).unwrap(),
            None => std::fs::remove_file(signed.path("server.pem")).unwrap(),
        }
        let fault = certificates.reload().unwrap_err().to_string();
        assert!(fault.contains("server.pem") && fault.contains(word), "no {word} in {fault}");
        let (again, _wire, shaken) = pair(&certificates, signed.client_config(true), |mut client| {
            client.write_all(b"in").and_then(|()| client.flush())
        })
        .await;
        shaken.unwrap();
        again.await.unwrap().unwrap();
    }
    std::fs::write(signed.path("server.pem"), good).unwrap();
    certificates.reload().unwrap();
    drop(client.await.unwrap());
}

#[tokio::test]
async fn all_files_that_cannot_be_used_are_told() {
    let signed = Signed::new().await;
    let faults = |certificate: &str, key: &str, clients: &str| {
        let [certificate, key, clients] = [certificate, key, clients].map(|name| signed.path(name));
        let files = CertificateFiles { certificate, key, clients: Some(clients) };
        Certificates::load(files).map(|_| ()).unwrap_err()
    };
    assert_eq!(faults("no.pem", "no.key", "no.ca").len(), 3);
    std::fs::write(
        signed.path("encrypted"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let said = faults("server.pem", "encrypted", "server.key").join("; ");
    assert!(said.contains("encrypted: it is encrypted") && said.contains("server.key: no -----BEGIN CERT"), "{said}");
    let said = faults("server.pem", "client.key", "ca.pem").join("; ");
    assert!(said.contains("server.pem") && said.contains("client.key") && said.contains("key"), "{said}");
}
