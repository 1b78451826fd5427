use std::net::{TcpListener, UdpSocket};

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

fn mk_sockets() -> Sockets {
    let first = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    Sockets { address, udp: vec![first, UdpSocket::bind("127.0.0.1:0").unwrap()], tcp }
}

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("namegate-heir-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// An agent that is asked to hand over, and the one that asks.
async fn begin(folder: &Folder) -> (Heir, JoinHandle<anyhow::Result<Place>>) {
    let lock = AgentLock::take(&folder.0).unwrap();
    let mut heirs = Heirs::listen(&folder.0).unwrap();
    let run_dir = folder.0.clone();
    let next = tokio::spawn(async move { succeed(&run_dir).await });
    let heir = heirs.next().await;
    drop((heirs, lock));
    (heir, next)
}

fn seat(heir: Heir, sockets: Vec<Sockets>, limit: Duration) -> JoinHandle<anyhow::Result<()>> {
    tokio::task::spawn_blocking(move || heir.seat(&sockets, limit))
}

#[tokio::test]
async fn what_was_sent_before_the_hand_over_is_read_after_it() {
    let folder = Folder::new("give");
    let (heir, next) = begin(&folder).await;
    let sockets = mk_sockets();
    let pod = UdpSocket::bind("127.0.0.1:0").unwrap();
    pod.send_to(b"lookup", sockets.address).unwrap();
    let seated = seat(heir, vec![sockets, mk_sockets()], LONG);

    let Place { lock, sockets, former } = next.await.unwrap().unwrap();
    assert_eq!(sockets.iter().map(|one| one.udp.len()).collect::<Vec<_>>(), [2, 2]);
    let mut text = [0; 16];
    assert_eq!(sockets[0].udp[0].recv(&mut text).unwrap(), 6);
    assert!(sockets.iter().all(|one| one.tcp.local_addr().is_ok()));
    assert!(!seated.is_finished(), "nothing is in force");
    assert!(AgentLock::take(&folder.0).is_err(), "the heir has the node");
    former.unwrap().relieve().await.unwrap();
    seated.await.unwrap().unwrap();
    drop(lock);
}

#[tokio::test]
async fn an_heir_that_ends_before_it_enforces_leaves_the_node_to_the_former_agent() {
    let folder = Folder::new("ends");
    let (heir, next) = begin(&folder).await;
    let seated = seat(heir, vec![mk_sockets()], LONG);
    drop(next.await.unwrap().unwrap());
    let error = seated.await.unwrap().expect_err("nothing is in force").to_string();
    assert_eq!(error, "it ended before it enforced");
    wait_for_lock(&folder.0).await.unwrap();
}

#[tokio::test]
async fn an_heir_that_takes_too_long_is_told_to_end() {
    let folder = Folder::new("slow");
    let (heir, next) = begin(&folder).await;
    let seated = seat(heir, Vec::new(), Duration::from_millis(50));
    let Place { former, .. } = next.await.unwrap().unwrap();
    let mut former = former.unwrap();
    timeout(LONG, former.wants_back()).await.unwrap();
    seated.await.unwrap().expect_err("it was too slow");
}

#[tokio::test]
async fn an_heir_that_enforces_too_late_ends() {
    let folder = Folder::new("late");
    let (heir, next) = begin(&folder).await;
    let seated = seat(heir, Vec::new(), Duration::from_millis(50));
    let Place { former, .. } = next.await.unwrap().unwrap();
    seated.await.unwrap().expect_err("it was too slow");
    let error = former.unwrap().relieve().await.expect_err("the former agent goes on");
    assert_eq!(error.to_string(), GOES_ON);
}

#[tokio::test]
async fn a_former_agent_that_dies_leaves_the_node_to_its_heir() {
    let folder = Folder::new("dies");
    let (heir, next) = begin(&folder).await;
    drop(heir);
    let place = next.await.unwrap().unwrap();
    assert!(place.sockets.is_empty() && place.former.is_none());

    let folder = Folder::new("dies-later");
    let (mut heir, next) = begin(&folder).await;
    let said = tokio::task::spawn_blocking(move || passing::say(&mut heir.0, &Word::Done, None));
    said.await.unwrap().unwrap();
    let mut former = next.await.unwrap().unwrap().former.unwrap();
    let wanted = timeout(Duration::from_millis(50), former.wants_back()).await;
    assert!(wanted.is_err(), "it is dead, and wants nothing");
    former.relieve().await.unwrap();
}

#[tokio::test]
async fn who_is_no_heir_of_this_version_gets_nothing() {
    let folder = Folder::new("stranger");
    let mut heirs = Heirs::listen(&folder.0).unwrap();
    for said in ["GET / HTTP/1.1\r\n\r\n", "namegate-heir-0\n"] {
        let mut stranger = UnixStream::connect(path(&folder.0)).await.unwrap();
        stranger.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Refused with octets that nobody read: the connection may be reset.
        let _ = stranger.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer == GREETING, "{answer:?}");
    }
    assert!(heirs.came.try_recv().is_err(), "an heir");
}

#[tokio::test]
async fn an_heir_is_told_by_what_version_it_could_take_over() {
    let folder = Folder::new("version");
    let listener = UnixListener::bind(path(&folder.0)).unwrap();
    let run_dir = folder.0.clone();
    let asked = tokio::spawn(async move { ask(&run_dir).await.map(drop) });
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"namegate-heir-7\n").await.unwrap();
    let error = asked.await.unwrap().expect_err("another version").to_string();
    assert!(error.contains("namegate-heir-7") && error.contains("delete its pod"), "{error}");
}
