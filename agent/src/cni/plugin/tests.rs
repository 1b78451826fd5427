use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;

use serde_json::json;

use super::*;

/// An agent that gives one answer, and says what it was asked.
fn mk_agent(name: &str, answer: &'static str) -> (PathBuf, thread::JoinHandle<String>) {
    let path = std::env::temp_dir().join(format!("namegate-cni-{name}-{}", std::process::id()));
    let _absent = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let served = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut asked = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(text) = line.strip_prefix("Content-Length: ") {
                length = text.trim().parse().unwrap();
            }
            asked.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        asked.push_str(&String::from_utf8(body).unwrap());
        (&stream).write_all(answer.as_bytes()).unwrap();
        asked
    });
    (path, served)
}

fn mk_environment(command: &str) -> BTreeMap<String, String> {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u1"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn mk_config(socket: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "namegate-cni", "socket": socket,
        "waitSeconds": 1,
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth1", "mac": "00:11:22:33:44:56", "sandbox": ""},
                {"name": "eth0", "mac": "00:11:22:33:44:57", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.244.1.5/24", "gateway": "10.244.1.1", "interface": 2},
                {"address": "fd00::5/64", "interface": 2},
                {"address": "10.244.1.1/24", "interface": 1},
            ],
            "dns": {},
        },
    })
}

fn run_with(
    environment: &BTreeMap<String, String>,
    config: &Value,
) -> Result<Option<Value>, Value> {
    run(environment, config.to_string().as_bytes()).map_err(|refusal| refusal.document())
}

const YES: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull";
const LATE: &str =
    "HTTP/1.1 504 Gateway Timeout\r\n\r\n{\"error\":\"Pod shop/web-1: not told of\"}";

#[test]
fn add_tells_the_pods_addresses_and_hands_the_result_on() {
    let (socket, served) = mk_agent("add", YES);
    let config = mk_config(socket.to_str().unwrap());
    let result = run_with(&mk_environment("ADD"), &config).unwrap().unwrap();
    assert_eq!(result, config["prevResult"]);
    let asked = served.join().unwrap();
    assert!(asked.starts_with("POST /v1/cni/add HTTP/1.1\r\n"), "{asked}");
    let body: AttachedPod = serde_json::from_str(asked.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let expected = AttachedPod {
        attachment: Attachment { container_id: "c1".to_owned(), interface: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        uid: Some("u1".to_owned()),
        addresses: ["10.244.1.5", "fd00::5"].map(|text| text.parse().unwrap()).into(),
        wait_ms: 1_000,
    };
    assert_eq!(body, expected);
}

#[test]
fn without_a_word_of_the_agent_the_failure_policy_decides() {
    let folder = std::env::temp_dir().join(format!("namegate-cni-away-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let absent = folder.join("namegate.sock");
    let mut config = mk_config(absent.to_str().unwrap());
    let refused = run_with(&mk_environment("ADD"), &config).unwrap_err();
    assert_eq!(refused["code"], 11);
    assert!(refused["msg"].as_str().unwrap().contains("no agent at"), "{refused}");

    config["failurePolicy"] = "Allow".into();
    let result = run_with(&mk_environment("ADD"), &config).unwrap().unwrap();
    assert_eq!(result, config["prevResult"]);
    let alarm = std::fs::read_to_string(folder.join("unguarded/c1.json")).unwrap();
    assert!(alarm.contains("shop/web-1") && alarm.contains("no agent at"), "{alarm}");

    let (socket, served) = mk_agent("late", LATE);
    let refused = run_with(&mk_environment("ADD"), &mk_config(socket.to_str().unwrap()));
    let refused = refused.unwrap_err();
    assert_eq!(
        (&refused["code"], &refused["msg"]),
        (&11.into(), &"Pod shop/web-1: not told of".into())
    );
    served.join().unwrap();

    let (socket, served) = mk_agent("ends", "");
    let refused = run_with(&mk_environment("ADD"), &mk_config(socket.to_str().unwrap()));
    assert_eq!(refused.unwrap_err()["code"], 11, "an agent that ended says nothing of the pod");
    served.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_ends_a_pod_never_fails_for_want_of_an_agent() {
    let mut config = mk_config("/no/such/socket");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    for command in ["DEL", "GC"] {
        assert_eq!(run_with(&mk_environment(command), &config), Ok(None), "{command}");
    }
    let mut environment = mk_environment("DEL");
    environment.remove("CNI_NETNS");
    assert_eq!(run_with(&environment, &config), Ok(None), "the namespace may be gone");
    let refused = run_with(&mk_environment("STATUS"), &config).unwrap_err();
    assert_eq!(refused["code"], 50, "no pod can be started");
    config["failurePolicy"] = "Allow".into();
    assert_eq!(run_with(&mk_environment("STATUS"), &config), Ok(None));
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_code() {
    let without = |key: &str| {
        let mut config = mk_config("/no/such/socket");
        config.as_object_mut().unwrap().remove(key);
        config
    };
    let with = |key: &str, value: Value| {
        let mut config = mk_config("/no/such/socket");
        config[key] = value;
        config
    };
    for (command, config, code, words) in [
        ("ADD", without("prevResult"), 7, "stand behind one"),
        ("ADD", with("prevResult", json!({"ips": []})), 7, "no address"),
        ("ADD", with("prevResult", json!({"ips": [{"address": "x/24"}]})), 7, "\"x/24\""),
        ("ADD", with("cniVersion", "9.0.0".into()), 1, "9.0.0"),
        ("ADD", with("failurePolicy", "Maybe".into()), 6, "cannot be read"),
        ("GC", without("x"), 7, "valid-attachments"),
        ("FLY", without("x"), 4, "FLY"),
    ] {
        let refused = run_with(&mk_environment(command), &config).unwrap_err();
        assert_eq!(refused["code"], code, "{command}: {refused}");
        assert!(refused["msg"].as_str().unwrap().contains(words), "{refused}");
    }
    let mut environment = mk_environment("ADD");
    environment.remove("CNI_CONTAINERID");
    let refused = run_with(&environment, &mk_config("/x")).unwrap_err();
    assert_eq!(
        (&refused["code"], refused["msg"].as_str().unwrap().contains("CNI_CONTAINERID")),
        (&4.into(), true)
    );

    let versions = run_with(&mk_environment("VERSION"), &json!({})).unwrap().unwrap();
    assert_eq!(versions["supportedVersions"][4], "1.1.0");
    let mut environment = mk_environment("ADD");
    environment.insert("CNI_ARGS".to_owned(), String::new());
    let config = mk_config("/no/such/socket");
    let result = run_with(&environment, &config).unwrap().unwrap();
    assert_eq!(result, config["prevResult"], "a container that is no pod's has no policy");
}
