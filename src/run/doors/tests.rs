use clap::Parser as _;

use super::*;

/// What is said against some flags; nothing if they are right.
fn said(args: &[&str], passed: Vec<Passed>) -> String {
    let flags = Flags::parse_from([&["calico-node"], args].concat());
    let engine = "unix:///run/engine.sock".parse().unwrap();
    wanted(&flags, &engine, Ok(passed)).err().map(|fault| fault.to_string()).unwrap_or_default()
}

fn passed(name: &str, address: &str) -> Passed {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    Passed { name: name.to_owned(), socket: PassedSocket::Tcp(socket, address.parse().unwrap()), by_systemd: true }
}

#[test]
fn an_address_that_others_reach_is_refused_without_client_certificates_unless_one_insists() {
    for address in ["tcp://0.0.0.0:2377", "tcp://[::]:2377", "tcp://192.0.2.1:2377", "tcp://[::ffff:192.0.2.1]:2377"] {
        let fault = said(&["--listen", address], vec![]);
        for word in [address, "root", "127.0.0.1", "tls://", "--tlscacert", "--insecure-root-for-anyone-who-connects"] {
            assert!(fault.contains(word), "no {word} in {fault}");
        }
        assert_eq!(said(&["--listen", address, "--insecure-root-for-anyone-who-connects"], vec![]), "");
    }
    for address in
        ["tcp://127.0.0.1:1", "tcp://127.9.9.9:1", "tcp://[::1]:1", "tcp://[::ffff:127.0.0.1]:1", "unix:///a"]
    {
        assert_eq!(said(&["--listen", address], vec![]), "");
    }
    assert_eq!(said(&[], vec![]), "");
    let fault = said(&[], vec![passed("calico-node.socket", "0.0.0.0:2377")]);
    assert!(fault.contains("was passed") && fault.contains("FileDescriptorName=tls"), "{fault}");
    assert_eq!(said(&[], vec![passed("calico-node.socket", "127.0.0.1:2377")]), "");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let fault = said(
        &[
            "--listen=tcp://0.0.0.0:1,http://x,tls://127.0.0.1:2,unix:///run/engine.sock",
            "--tlscert=/no/cert",
            "--tlskey=/no/key",
            "--tlscacert=/no/ca",
            "--allow-host=docker1:2377",
        ],
        vec![],
    );
    for word in ["tcp://0.0.0.0:1", "http://x", "/no/cert", "/no/key", "/no/ca", "engine's own", "docker1:2377"] {
        assert!(fault.contains(word), "no {word} in {fault}");
    }
    let flags = Flags::parse_from(["calico-node", "--listen=http://x"]);
    let wrong = Err(vec!["descriptor 3".to_owned()]);
    let fault = wanted(&flags, &"tcp://127.0.0.1:1".parse().unwrap(), wrong).unwrap_err().to_string();
    assert!(fault.contains("descriptor 3") && fault.contains("http://x"), "{fault}");
}

#[test]
fn tls_needs_a_listener_a_certificate_and_its_key() {
    for (args, word) in [
        (&["--listen=tls://127.0.0.1:1"][..], "--tlscert and --tlskey"),
        (&["--listen=tls://127.0.0.1:1", "--tlscert=/a"], "go together"),
        (&["--listen=tls://127.0.0.1:1", "--tlskey=/a"], "go together"),
        (&["--tlscacert=/a"], "needs --tlscert and --tlskey"),
        (&["--listen=tcp://127.0.0.1:1", "--tlscert=/a", "--tlskey=/b"], "no listener speaks TLS"),
    ] {
        let fault = said(args, vec![]);
        assert!(fault.contains(word), "{args:?}: no {word} in {fault}");
    }
    let fault = said(&[], vec![passed("tls", "0.0.0.0:2376")]);
    assert!(fault.contains("tls://0.0.0.0:2376, which was passed: TLS needs a certificate"), "{fault}");
    assert!(fault.contains("give --tlscacert"), "{fault}");
}

#[test]
fn the_engines_own_socket_is_known_by_another_path_to_it() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
    let engine = format!("unix://{}/engine.sock", folder.path().display()).parse().unwrap();
    let wrong = |path: &str| {
        let flags =
            Flags::parse_from(["calico-node", "--listen", &format!("unix://{}/{path}", folder.path().display())]);
        wanted(&flags, &engine, Ok(vec![])).is_err()
    };
    assert!(wrong("engine.sock") && wrong("link/engine.sock") && !wrong("other.sock"));
}

#[tokio::test]
async fn a_machine_may_lack_a_default_address_but_nobody_else_may_hold_it() {
    let open = async |address: &str| {
        let listen = Listen::Tcp(address.parse().unwrap());
        let (places, passed, names) = (vec![(listen, true)], vec![], vec![]);
        let metrics = Metrics::At("127.0.0.1:0".to_owned());
        Wanted { places, passed, unwanted: vec![], metrics, certificates: None, names, engine: None }.open().await
    };
    // TEST-NET-1, RFC 5737.
    assert!(open("192.0.2.1:2377").await.unwrap().listeners.is_empty());
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let fault = open(&taken).await.unwrap_err().to_string();
    assert!(fault.contains(&taken) && fault.contains("in use"), "{fault}");
}

#[test]
fn of_another_nodes_doors_those_stay_open_that_the_flags_name_in_the_protocol_that_they_name() {
    let open = |args: &[&str], by_systemd| {
        let held = |name, address| Passed { by_systemd, ..passed(name, address) };
        let flags = Flags::parse_from([&["calico-node"], args].concat());
        let all = vec![held("docker", "127.0.0.1:2377"), held("docker", "[::1]:2377")];
        let wanted = wanted(&flags, &"unix:///run/engine.sock".parse().unwrap(), Ok(all)).unwrap();
        let names = |listens: Vec<&Listen>| listens.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let new = names(wanted.places.iter().map(|(listen, _)| listen).collect());
        (names(wanted.passed.iter().map(|(listen, _)| listen).collect()), new)
    };
    let both = "tcp://127.0.0.1:2377 tcp://[::1]:2377";
    for (args, by_systemd, kept, new) in [
        (&[][..], false, both, ""),
        (&["--listen=tcp://[::1]:2377"], false, "tcp://[::1]:2377", ""),
        (&["--listen=unix:///a,tcp://127.0.0.1:9"], false, "", "unix:///a tcp://127.0.0.1:9"),
        (&["--listen=unix:///a"], true, both, "unix:///a"),
    ] {
        assert_eq!(open(args, by_systemd), (kept.to_owned(), new.to_owned()), "{args:?} {by_systemd}");
    }
    assert!(is_at(&passed("docker", "127.0.0.1:2376").socket, &"tls://127.0.0.1:2376".parse().unwrap()));
}
