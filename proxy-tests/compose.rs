//! docker-compose through the node: Debian's 1.29, with the files that its users write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::json;

use crate::lab::Lab;
use crate::lab::command::Run;
use crate::lab::container::{Container, reach_each_other};
use crate::lab::host::{Host, words};

/// What most services do.
const IDLE: &str = r#"["sh", "-c", "echo up; trap 'exit 0' TERM; while :; do sleep 3600 & wait $$!; done"]"#;

/// A project folder on a host, and the way by which its docker-compose reaches dockerd.
struct Project<'h> {
    host: &'h Host,
    folder: PathBuf,
    docker_host: String,
}

impl<'h> Project<'h> {
    /// By the node's unix socket, or by its port.
    fn new(host: &'h Host, name: &str, over_tcp: bool) -> Self {
        let folder = host.scratch().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let socket = format!("unix://{}", host.proxy_socket().display());
        let docker_host = if over_tcp { "tcp://localhost:2377".to_owned() } else { socket };
        Project { host, folder, docker_host }
    }

    /// The same by dockerd's own socket.
    fn raw(host: &'h Host, name: &str) -> Self {
        let socket = host.proxy_socket().with_file_name("docker.sock");
        Project { docker_host: format!("unix://{}", socket.display()), ..Project::new(host, name, false) }
    }

    /// Writes the file; `IDLE` in it stands for the command.
    fn write(&self, text: &str) {
        std::fs::write(self.folder.join("docker-compose.yml"), text.replace("IDLE", IDLE)).unwrap();
    }

    fn run(&self, line: &str) -> Run {
        let folder = self.folder.display().to_string();
        let command = self.host.command("docker-compose");
        command
            .args(["--ansi", "never", "--project-directory", &folder, "-f", &format!("{folder}/docker-compose.yml")])
            .args(words(line))
            .env("DOCKER_HOST", &self.docker_host)
            .env("DOCKER_CONFIG", &folder)
    }

    /// What it says on both streams.
    #[track_caller]
    fn compose(&self, line: &str) -> String {
        let ran = self.run(line).run();
        ran.ok();
        format!("{}\n{}", ran.out(), ran.err())
    }

    /// The same of one that fails.
    #[track_caller]
    fn fails(&self, line: &str) -> String {
        self.run(line).run().fails_with(1)
    }

    /// What it prints on its standard output alone.
    #[track_caller]
    fn prints(&self, line: &str) -> String {
        self.run(line).run().ok()
    }

    /// The ids of all containers by name.
    #[track_caller]
    fn ids(&self) -> BTreeMap<String, String> {
        let named = |id: &str| {
            let name = self.host.container(id).raw_inspect()["Name"].as_str().unwrap().to_owned();
            (name, id.to_owned())
        };
        self.prints("ps -aq").lines().map(named).collect()
    }

    /// The container of a service.
    #[track_caller]
    fn container(&self, service: &str) -> Container<'h> {
        let id = self.prints(&format!("ps -aq {service}"));
        assert_eq!(id.lines().count(), 1, "{service} has the containers {id:?}");
        self.host.container(&id)
    }
}

const SHOP: &str = r#"
version: "3.7"
services:
  web:
    image: shop/web
    command: IDLE
    environment: {CALICO_IP: 192.168.1.1, CALICO_PROFILE: shop, COLOUR: "${COLOUR:-red}"}
    ports: ["8080:80"]
    depends_on: [db]
    stop_grace_period: 2s
  worker:
    image: busybox
    command: IDLE
    environment: [CALICO_IP=auto, CALICO_PROFILE=shop]
    networks: {back: {aliases: [w, hand]}}
  db:
    image: shop/db
    command: IDLE
    network_mode: none
    environment: [CALICO_IP=192.168.1.3, CALICO_PROFILE=shop]
  cache:
    image: busybox
    command: IDLE
    network_mode: none
    environment: [CALICO_IP=auto, CALICO_PROFILE=shop]
  plain:
    image: busybox
    command: IDLE
networks: {back: {}}
"#;

const SERVICES: [&str; 5] = ["cache", "db", "plain", "web", "worker"];

/// The address that a container shows in one network, with all that compose reads there.
#[track_caller]
fn shows(container: &Container<'_>, network: &str, aliases: &[&str]) {
    let address = container.ip().to_string();
    let inspected = container.inspect();
    let list = container.host.api("GET", "/v1.38/containers/json?all=1", None).json();
    let listed = list.as_array().unwrap().iter().find(|one| one["Id"] == container.id.as_str()).unwrap();
    for settings in [&inspected["NetworkSettings"], &listed["NetworkSettings"]] {
        let networks = settings["Networks"].as_object().unwrap();
        assert_eq!(networks.keys().collect::<Vec<_>>(), [network]);
        let shown = &networks[network];
        assert_eq!((&shown["IPAddress"], &shown["IPPrefixLen"]), (&json!(address), &json!(32)));
        assert_eq!(shown["Gateway"], container.host.ip.to_string());
        assert_eq!(shown["MacAddress"], container.record()["mac"]);
        // In whatever order compose named them.
        let all: BTreeSet<&str> =
            shown["Aliases"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(all, aliases.iter().copied().chain([&container.id[..12]]).collect());
        // Newer versions of compose 2 compare it.
        let id = container.host.raw_docker(&format!("network inspect -f {{{{.Id}}}} {network}")).ok();
        assert_eq!(shown["NetworkID"], id);
    }
}

/// A project from `up` to `down`.
fn live(lab: &Lab, shop: &Project<'_>) {
    let h1 = lab.host(1);
    let said = shop.compose("up -d");
    for service in SERVICES {
        assert!(said.contains(&format!("Creating shop_{service}_1")), "{said}");
    }
    lab.assert_consistent();
    let [cache, db, plain, web, worker] = SERVICES.map(|service| shop.container(service));
    assert_eq!((web.ip().to_string(), db.ip().to_string()), ("192.168.1.1".to_owned(), "192.168.1.3".to_owned()));
    shows(&web, "shop_default", &["web"]);
    shows(&worker, "shop_back", &["w", "hand", "worker"]);
    shows(&db, "none", &[]);
    shows(&cache, "none", &[]);
    assert_eq!(plain.inspect(), plain.raw_inspect());
    assert!(plain.try_record().is_none());
    reach_each_other(&[&cache, &db, &web, &worker]);

    // Nothing has changed, so nothing is done.
    let ids = shop.ids();
    let same = |what: &str| assert_eq!(shop.ids(), ids, "after {what}");
    for options in ["", "--no-recreate", "--remove-orphans"] {
        let said = shop.compose(&format!("up -d {options}"));
        assert!(!said.contains("reating") && !said.contains("Starting"), "{said}");
        same(options);
    }

    // What users look at.
    let listed = shop.prints("ps");
    assert_eq!(listed.lines().filter(|line| line.contains(" Up")).count(), 5, "{listed}");
    let logged = shop.prints("logs --no-color --tail=5");
    for service in SERVICES {
        assert!(
            logged.lines().any(|line| line.starts_with(&format!("{service}_1")) && line.ends_with("| up")),
            "{logged}"
        );
    }
    assert_eq!(shop.prints("exec -T web sh -c 'echo $COLOUR'"), "red");
    assert_eq!(shop.run("exec -T db cat").input("in and out").run().ok(), "in and out");
    assert_eq!(shop.run("exec -T web sh -c 'exit 7'").run().code, Some(7));
    assert!(shop.prints("top web").contains("sleep 3600"));
    assert!(shop.prints("exec -T web ip address show eth1").contains("192.168.1.1/32"));
    assert_eq!(shop.prints("ps -q worker"), worker.id);

    // Beside the services.
    // A process may be there some milliseconds before its network.
    let wait = "sh -c 'until ip address show eth1 2>/dev/null | grep -o inet.192.168; do sleep 0.05; done'";
    for service in ["worker", "cache"] {
        assert_eq!(shop.prints(&format!("run --rm -T {service} {wait}")), "inet 192.168", "{service}");
    }
    assert_eq!(shop.prints("run --rm -T -e CALICO_IP=auto web echo aside"), "aside");
    let said = shop.fails("run --rm -T web echo never");
    assert!(said.contains("192.168.1.1") && said.contains(&web.id[..12]), "{said}");
    same("run");
    lab.assert_consistent();

    // Stops and starts keep containers and addresses.
    for line in ["stop -t 1", "start", "restart -t 1 web", "kill db", "up -d"] {
        shop.compose(line);
        same(line);
        lab.assert_consistent();
    }
    assert_eq!(web.ip().to_string(), "192.168.1.1");
    reach_each_other(&[&cache, &db, &web, &worker]);

    // More of what has no address of its own, and fewer.
    shop.compose("up -d --scale worker=3 --scale cache=2");
    assert_eq!(shop.ids().len(), 8);
    lab.assert_consistent();
    let said = shop.fails("up -d --scale web=2");
    assert!(said.contains("192.168.1.1") && said.contains(&web.id[..12]), "{said}");
    shop.compose("up -d --scale worker=1");
    assert_eq!(shop.ids().keys().collect::<Vec<_>>(), ids.keys().collect::<Vec<_>>());
    lab.assert_consistent();

    let said = shop.compose("down -t 1");
    assert!(said.contains("Removing network shop_back"), "{said}");
    assert!(shop.ids().is_empty());
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    assert!(!h1.docker("network ls").ok().contains("shop"));
    lab.assert_consistent();
}

/// Services that are recreated keep their addresses.
fn recreate(lab: &Lab, shop: &Project<'_>) {
    let h1 = lab.host(1);
    let [db, web] = ["db", "web"].map(|service| shop.container(service));
    // Another environment.
    let said = shop.run("up -d").env("COLOUR", "blue").run();
    said.ok();
    assert!(said.err().contains("Recreating shop_web_1"), "{said}");
    let blue = shop.container("web");
    assert!(blue.id != web.id && blue.ip().to_string() == "192.168.1.1");
    assert_eq!(shop.prints("exec -T web sh -c 'echo $COLOUR'"), "blue");
    assert_eq!(shop.container("db").id, db.id);
    shows(&blue, "shop_default", &["web"]);
    lab.assert_consistent();
    reach_each_other(&[&blue, &db]);

    // Other images, two at once.
    for image in ["shop/web", "shop/db"] {
        let file = format!("FROM busybox\nENV MADE_FROM={}\n", blue.id);
        h1.raw_docker_run(&["build", "-q", "-t", image, "-"]).input(file).run().ok();
    }
    let said = shop.compose("up -d");
    assert!(said.contains("Recreating shop_web_1") && said.contains("Recreating shop_db_1"), "{said}");
    let [newer_db, newer] = ["db", "web"].map(|service| shop.container(service));
    assert!(newer.id != blue.id && newer.ip().to_string() == "192.168.1.1");
    assert!(newer_db.id != db.id && newer_db.ip().to_string() == "192.168.1.3");
    assert_eq!(shop.ids().len(), 5);
    lab.assert_consistent();
    reach_each_other(&[&newer, &newer_db]);

    // All of them, changed or not; then nothing more.
    shop.compose("up -d --force-recreate -t 1");
    lab.assert_consistent();
    let ids = shop.ids();
    assert!(!ids.values().any(|id| *id == newer.id) && ids.len() == 5, "{ids:?}");
    assert_eq!(shop.container("web").ip().to_string(), "192.168.1.1");
    shop.compose("up -d");
    assert_eq!(shop.ids(), ids);
}

fn begin() -> Lab {
    let lab = Lab::bridged();
    lab.start_nodes();
    for image in ["shop/web", "shop/db"] {
        lab.host(1).raw_docker(&format!("tag busybox {image}")).ok();
    }
    lab
}

#[test]
fn a_compose_project_lives_through_the_node_from_up_to_down() {
    let lab = begin();
    let shop = Project::new(lab.host(1), "shop", false);
    shop.write(SHOP);
    live(&lab, &shop);
    lab.remove_everything();
}

#[test]
fn services_that_compose_recreates_keep_their_addresses() {
    let lab = begin();
    let shop = Project::new(lab.host(1), "shop", true);
    shop.write(SHOP);
    shop.compose("up -d");
    recreate(&lab, &shop);
    shop.compose("down -t 1");
    lab.remove_everything();
}

/// In the foreground compose attaches, follows events and waits.
#[test]
fn a_project_in_the_foreground_prints_what_its_services_say_and_ends_with_their_exit_code() {
    let lab = begin();
    let h1 = lab.host(1);
    for over_tcp in [false, true] {
        let job = Project::new(h1, "job", over_tcp);
        job.write(
            "version: '3.7'\nservices:\n  helper: {image: busybox, command: IDLE, environment: [CALICO_IP=auto, CALICO_PROFILE=job]}\n  \
             task: {image: busybox, command: 'sh -c \"echo begun; sleep 1; echo done; exit 6\"', environment: [CALICO_IP=auto, CALICO_PROFILE=job]}\n",
        );
        let ran = job.run("up --no-color -t 1 --exit-code-from task").run();
        assert_eq!(ran.code, Some(6), "{ran}");
        for line in ["| begun", "| done", "helper_1", "job_task_1 exited with code 6"] {
            assert!(ran.out().contains(line), "no {line} in {ran}");
        }
        lab.assert_consistent();
        job.compose("down -t 1");
    }
    lab.remove_everything();
}

/// A service without our variables is dockerd's alone, so all that compose prints is the same.
#[test]
fn a_compose_project_of_others_looks_as_without_the_node() {
    let lab = begin();
    let h1 = lab.host(1);
    let ways = [Project::raw(h1, "plain"), Project::new(h1, "plain", false), Project::new(h1, "plain", true)];
    let transcripts = ways.map(|project| {
        project.write("version: '3.7'\nservices: {box: {image: busybox, command: IDLE, ports: ['8080:80']}}\n");
        let lines = [
            "up -d",
            "up -d",
            "ps",
            "logs --no-color",
            "exec -T box echo hello",
            "run --rm -T box echo aside",
            "down -t 1",
        ];
        // A one-off's name is random.
        let aside = |text: String| text.lines().filter(|line| !line.contains("_run")).collect::<Vec<_>>().join("\n");
        lines.map(|line| aside(project.compose(line)))
    });
    assert!(transcripts[0][3].contains("| up"), "{transcripts:#?}");
    assert_eq!(transcripts[1], transcripts[0]);
    assert_eq!(transcripts[2], transcripts[0]);
    lab.assert_consistent();
}

/// A file without a version speaks API 1.21, whose errors are plain text.
#[test]
fn a_compose_file_of_the_first_format_works_and_its_errors_are_read() {
    let lab = begin();
    let h1 = lab.host(1);
    let old = Project::new(h1, "old", false);
    let service = |name: &str, address: &str| {
        format!(
            "{name}: {{image: busybox, command: IDLE, net: none, environment: [CALICO_IP={address}, CALICO_PROFILE=old]}}\n"
        )
    };
    old.write(&service("one", "192.168.1.1"));
    old.compose("up -d");
    let one = old.container("one");
    assert_eq!(one.ip().to_string(), "192.168.1.1");
    old.compose("up -d");
    assert_eq!(old.container("one").id, one.id);
    lab.assert_consistent();
    for (address, words) in [("192.168.1.1", ["already held by", &one.id[..12]]), ("banana", ["banana", "it must be"])]
    {
        old.write(&format!("{}{}", service("one", "192.168.1.1"), service("two", address)));
        let said = old.fails("up -d");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
        assert_eq!(old.container("one").id, one.id);
    }
    old.compose("up -d --force-recreate -t 1 one");
    assert!(old.container("one").id != one.id);
    assert_eq!(old.container("one").ip().to_string(), "192.168.1.1");
    old.compose("down -t 1");
    lab.remove_everything();
}

/// Compose puts a container into its second network after the create; it has but the one of Calico's.
#[test]
fn a_service_in_two_networks_is_refused_with_the_reason() {
    let lab = begin();
    let two = Project::new(lab.host(1), "two", false);
    two.write(
        "version: '3.7'\nservices: {box: {image: busybox, command: IDLE, environment: [CALICO_IP=auto], networks: [a, b]}}\n\
         networks: {a: {}, b: {}}\n",
    );
    let said = two.fails("up -d");
    assert!(said.contains("two_") && said.contains("Calico"), "{said}");
    assert_eq!(two.container("box").pid(), 0);
    two.compose("down");
    lab.remove_everything();
}

/// Compose 1 leaves the old container stopped and renamed when the new one does not start; the next `up` works with both.
#[test]
fn a_recreation_that_failed_is_made_good_by_the_next() {
    let lab = begin();
    let h1 = lab.host(1);
    let shop = Project::new(h1, "shop", false);
    let write = |command: &str, image: &str| {
        shop.write(&format!(
            "version: '3.7'\nservices: {{web: {{image: {image}, command: {command}, environment: [CALICO_IP=192.168.1.1, CALICO_PROFILE=web]}}}}\n"
        ));
    };
    write("IDLE", "busybox");
    shop.compose("up -d");
    let first = shop.container("web");
    // The image is not there: nothing has happened to the old one but its stop.
    write("IDLE", "shop/missing");
    shop.fails("up -d");
    lab.assert_consistent();
    assert_eq!(first.ip().to_string(), "192.168.1.1");
    // The new one does not start.
    write("/no/such", "busybox");
    let said = shop.fails("up -d");
    assert!(said.contains("/no/such"), "{said}");
    lab.assert_consistent();
    // Back again it is the old one that goes on; with something new there is one more.
    for (command, is_new) in [("IDLE", false), (r#"["sh", "-c", "while :; do sleep 1; done"]"#, true)] {
        write(command, "busybox");
        for _ in 0..2 {
            shop.compose("up -d -t 1");
            let web = shop.container("web");
            assert_eq!(web.id != first.id, is_new);
            assert!(web.pid() != 0 && web.ip().to_string() == "192.168.1.1");
            lab.assert_consistent();
        }
        write("/no/such", "busybox");
        shop.fails("up -d -t 1");
        lab.assert_consistent();
    }
    assert_eq!(h1.container_ids().len(), 2);
    shop.compose("down -t 1");
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    lab.remove_everything();
}
