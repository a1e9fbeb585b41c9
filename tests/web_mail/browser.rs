//! The page in headless Chromium, by WebDriver.
//!
//! With `BACKROOM_SCREENSHOTS` it leaves pictures in that folder.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::site::{Events, Site};
use super::smtp::{Act, Server};
use crate::common::{PATIENCE, Program, eventually, programs};
use crate::test_name;

/// A browser window.
struct Window {
    session: String,
    _driver: Program,
}

impl Window {
    fn open(url: &str) -> Window {
        let mut driver = Program::start(Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()));
        let said = BufReader::new(driver.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = said.filter_map(|line| Some(line.strip_suffix('.')?.rsplit_once("on port ")?.1.to_owned()));
        let port = { port }.next().expect("the port of chromedriver");
        let args = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,800"];
        let wanted = json!({
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "pageLoad": PATIENCE.as_millis() as u64 },
        });
        let sessions = format!("http://127.0.0.1:{port}/session");
        let made = post(&sessions, &json!({ "capabilities": { "alwaysMatch": wanted } }));
        let window = Window { session: format!("{sessions}/{}", made["sessionId"].as_str().unwrap()), _driver: driver };
        window.command("url", &json!({ "url": url }));
        window
    }

    fn command(&self, command: &str, arguments: &Value) -> Value {
        post(&format!("{}/{command}", self.session), arguments)
    }

    /// Opens another tab, of the same browser, and goes there.
    fn open_tab(&self, url: &str) {
        let tab = self.command("window/new", &json!({ "type": "tab" }));
        self.go_to_tab(&tab["handle"]);
        self.command("url", &json!({ "url": url }));
    }

    fn go_to_tab(&self, tab: &Value) {
        self.command("window", &json!({ "handle": tab }));
    }

    fn tab(&self) -> Value {
        let answer = ureq::get(format!("{}/window", self.session)).call().unwrap().body_mut().read_json::<Value>();
        answer.unwrap()["value"].take()
    }

    fn devtools(&self, command: &str, arguments: &Value) {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": arguments }));
    }

    /// What this expression is in the page.
    fn value(&self, expression: &str) -> Value {
        self.command("execute/sync", &json!({ "script": format!("return {expression}"), "args": [] }))
    }

    fn text(&self, selector: &str) -> String {
        self.value(&format!("document.querySelector('{selector}')?.innerText ?? ''")).as_str().unwrap().to_owned()
    }

    fn shows(&self, selector: &str, text: &str) {
        eventually(&format!("{selector} shows {text:?}"), || self.text(selector) == text);
    }

    fn types(&self, selector: &str, text: &str) {
        self.on(selector, "value", &json!({ "text": text }));
    }

    fn click(&self, selector: &str) {
        self.on(selector, "click", &json!({}));
    }

    fn on(&self, selector: &str, what: &str, arguments: &Value) {
        let found = self.command("element", &json!({ "using": "css selector", "value": selector }));
        let element = found.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        self.command(&format!("element/{element}/{what}"), arguments);
    }

    fn emulate(&self, width: u32, height: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// What the page complained of, such as what its policy forbids.
    fn complaints(&self) -> Value {
        self.command("se/log", &json!({ "type": "browser" }))
    }

    fn picture(&self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("BACKROOM_SCREENSHOTS") else { return };
        let answer = ureq::get(format!("{}/screenshot", self.session)).call().unwrap().body_mut().read_json::<Value>();
        let png = base64::prelude::BASE64_STANDARD.decode(answer.unwrap()["value"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&folder).join(name), png).unwrap();
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = ureq::delete(&self.session).call();
    }
}

fn post(url: &str, body: &Value) -> Value {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent.post(url).send_json(body).expect("chromedriver answers");
    let value = answer.body_mut().read_json::<Value>().expect("JSON")["value"].take();
    assert!(answer.status().is_success(), "{url} {body}: {value}");
    value
}

fn has_browser() -> bool {
    programs(&["chromium", "chromedriver"])
}

#[test]
fn one_writes_a_mail_and_sees_what_becomes_of_it_without_loading_the_page_again() {
    if !has_browser() {
        return;
    }
    let site = Site::open(test_name!(), &["--task-workers", "1", "--slow-ms", "1000"]);
    let window = Window::open(&site.url());
    window.shows("#live", "live");
    window.emulate(1280, 800, "light");
    window.value("window.loadedOnce = true");
    for (to, subject) in [
        ("ann@example.org", "Your order has left the house"),
        (
            "Zoë <zoe@example.org>",
            "<img src=x onerror=\"document.title='broken'\"><script>document.title='in'</script>",
        ),
        ("bob@example.org", "Invoice 2026-117"),
        ("eve@example.org", "Our meeting has moved to Thursday, and so has the lunch that was to follow it"),
        ("dan@example.org", "Welcome"),
    ] {
        assert_eq!(site.post(&[("to", to), ("subject", subject)]).status, 202);
    }
    window.types("#to", "fay@example.org");
    window.types("#subject", "Written here");
    window.types("#text", "First line\nsecond line");
    window.click("button");
    eventually("it is accepted", || window.text("#answer").starts_with("task "));
    assert!(window.text("#answer").contains("accepted in"), "{}", window.text("#answer"));
    window.shows("#mails li:first-child .subject", "Written here");
    let state = window.text("#mails li:first-child .state");
    assert!(state.starts_with("queued, ") && state.ends_with(" before it"), "{state}");
    assert_eq!((window.text("#subject"), window.value("form.elements.text.value")), (String::new(), "".into()));
    window.picture("desktop.png");
    window.shows("#mails li:first-child .state", "sending");
    window.shows("#mails li:first-child .state", "sent");
    window.shows(
        "#mails li:nth-child(5) .subject",
        "<img src=x onerror=\"document.title='broken'\"><script>document.title='in'</script>",
    );
    assert_eq!(window.value("document.querySelectorAll('#mails img, #mails script').length"), 0);
    assert_eq!(window.value("[document.title, window.loadedOnce]"), json!(["Mail, without the wait", true]));
    assert_eq!(window.complaints(), json!([]));
}

#[test]
fn what_is_wrong_with_a_mail_is_said_where_it_is_wrong() {
    if !has_browser() {
        return;
    }
    let site = Site::open(test_name!(), &["--task-workers", "1", "--queue", "1", "--slow-ms", "60000"]);
    let window = Window::open(&site.url());
    window.types("#to", "ann at example");
    window.click("button");
    window.shows("#to-problem", "an address such as ann@example.org, and one only");
    assert_eq!(window.value("document.activeElement.id"), "to");
    assert_eq!(window.value("form.elements.to.getAttribute('aria-invalid')"), "true");
    window.value("form.elements.to.value = 'ann@example.org'");
    while site.post(&[("to", "ann@example.org")]).status == 202 {}
    window.click("button");
    window.shows("#answer", "Too many letters wait. Try again in a few seconds.");
    window.shows("#to-problem", "");
}

#[test]
fn a_mail_that_failed_says_why_and_all_fits_on_a_phone_in_the_dark() {
    if !has_browser() {
        return;
    }
    let smtp = ["--smtp", "smtp://127.0.0.1:1", "--attempts", "2", "--retry-ms", "1"];
    let site = Site::open(test_name!(), &smtp);
    let window = Window::open(&site.url());
    window.emulate(360, 780, "dark");
    let long = "unbreakable".repeat(15);
    assert_eq!(site.post(&[("to", &format!("{}@example.org", "a".repeat(60))), ("subject", &long)]).status, 202);
    window.shows("#mails li .state", "failed");
    assert!(window.text("#mails li .why").contains("refused"), "{}", window.text("#mails li .why"));
    window.shows("#summary", "1 failed");
    assert_eq!(window.value("document.documentElement.scrollWidth"), 360);
    let brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)";
    let dark = window.value(brightness);
    assert!(dark.as_array().unwrap().iter().all(|part| part.as_u64() < Some(64)), "{dark}");
    window.picture("phone-dark.png");
    window.emulate(360, 780, "light");
    let light = window.value(brightness);
    assert!(light.as_array().unwrap().iter().all(|part| part.as_u64() > Some(192)), "{light}");
    window.picture("phone-light.png");
}

#[test]
fn a_page_finds_its_server_again_when_that_was_started_anew() {
    if !has_browser() {
        return;
    }
    let site = Site::open(test_name!(), &[]);
    let window = Window::open(&site.url());
    assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    window.shows("#mails li .state", "sent");
    let addr = site.addr.to_string();
    drop(site);
    window.shows("#live", "reconnecting");
    let again = Site::open(test_name!(), &["--listen", &addr]);
    window.shows("#live", "live");
    window.shows("#mails", "");
    assert_eq!(again.post(&[("to", "bob@example.org")]).status, 202);
    window.shows("#mails li .to", "bob@example.org");
}

#[test]
fn a_browser_may_have_more_tabs_than_connections_to_a_server() {
    if !has_browser() {
        return;
    }
    let site = Site::open(test_name!(), &[]);
    let window = Window::open(&site.url());
    window.shows("#live", "live");
    let first = window.tab();
    for _ in 0..8 {
        window.open_tab(&site.url());
        window.shows("#live", "live");
    }
    window.types("#to", "ann@example.org");
    window.click("button");
    window.shows("#mails li .state", "sent");
    window.go_to_tab(&first);
    window.shows("#live", "live");
    window.shows("#mails li .state", "sent");
}

#[test]
fn a_page_says_that_its_server_is_lost_when_that_is_silent_and_finds_it_again() {
    if !has_browser() {
        return;
    }
    let site = Site::open(test_name!(), &[]);
    let window = Window::open(&site.url());
    window.shows("#live", "live");
    // It is not silent where no mail is sent.
    let Events(mut events) = site.events();
    let mut line = String::new();
    while !line.starts_with("event: heartbeat") {
        line.clear();
        events.0.read_line(&mut line).unwrap();
    }
    site.example.signal(Signal::STOP);
    window.shows("#live", "reconnecting");
    site.example.signal(Signal::CONT);
    window.shows("#live", "live");
}

#[test]
fn a_mail_of_which_nobody_knows_whether_it_was_delivered_says_so() {
    if !has_browser() {
        return;
    }
    let smtp = Server::start(|step, _| if step == "." { Act::Close } else { Act::Well });
    let site = smtp.site(test_name!(), &[]);
    let window = Window::open(&site.url());
    window.emulate(360, 780, "light");
    assert_eq!(site.post(&[("to", "ann@example.org"), ("subject", "Once")]).status, 202);
    window.shows("#mails li .state", "not known");
    window.shows("#summary", "1 not known");
    let why = window.text("#mails li .why");
    assert!(why.starts_with("It is not known whether it was delivered: the server did not confirm: "), "{why}");
    assert_eq!(window.value("document.documentElement.scrollWidth"), 360);
    window.picture("unknown.png");
}
