//! The mail that somebody has written, as a form sends it.

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, SinglePart};
use lettre::{Address, Message};
use serde::Serialize;

const MAX_ADDRESS: usize = 254;
const MAX_SUBJECT: usize = 200;
const MAX_TEXT: usize = 20_000;

#[derive(Default)]
pub(crate) struct Form {
    pub(crate) to: String,
    pub(crate) subject: String,
    text: String,
}

/// What is wrong with a form, and where.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    field: &'static str,
    problem: String,
}

impl Problem {
    fn new(field: &'static str, problem: impl Into<String>) -> Problem {
        Problem { field, problem: problem.into() }
    }
}

impl Form {
    pub(crate) fn parse(body: &[u8]) -> Result<Form, Problem> {
        let mut form = Form::default();
        for (name, value) in form_urlencoded::parse(body) {
            match &*name {
                "to" => form.to = value.trim().to_owned(),
                "subject" => form.subject = value.trim().to_owned(),
                // Browsers send the ends of lines as CRLF; the longest text is counted as they show it. A CR alone would
                // end a line for some mail servers, and so the mail after a dot.
                "text" => form.text = value.replace("\r\n", "\n").replace('\r', "\n"),
                _ => {}
            }
        }
        for (field, value, most) in
            [("to", &form.to, MAX_ADDRESS), ("subject", &form.subject, MAX_SUBJECT), ("text", &form.text, MAX_TEXT)]
        {
            if value.chars().count() > most {
                return Err(Problem::new(field, format!("at most {most} characters")));
            }
        }
        // The end of a line would be the beginning of a header of one's own, and others are for terminals.
        for (field, value) in [("to", &form.to), ("subject", &form.subject)] {
            if value.chars().any(char::is_control) {
                return Err(Problem::new(field, "one line of text"));
            }
        }
        if form.text.chars().any(|char| char.is_control() && char != '\n' && char != '\t') {
            return Err(Problem::new("text", "text without control characters"));
        }
        Ok(form)
    }

    pub(crate) fn message(&self, from: &Mailbox) -> Result<Message, Problem> {
        let to: Mailbox =
            self.to.parse().map_err(|_| Problem::new("to", "an address such as ann@example.org, and one only"))?;
        let to = deliverable(to).map_err(|problem| Problem::new("to", problem))?;
        let text = SinglePart::builder().header(ContentType::TEXT_PLAIN).body(self.text.clone());
        Message::builder()
            .from(from.clone())
            .to(to)
            .subject(self.subject.clone())
            .message_id(None)
            .date_now()
            .singlepart(text)
            .map_err(|error| Problem::new("to", error.to_string()))
    }
}

/// With the domain as all mail servers know it, in ASCII.
pub(crate) fn deliverable(Mailbox { name, email }: Mailbox) -> Result<Mailbox, String> {
    if !email.user().is_ascii() {
        return Err("before the @, letters without accents: most mail servers take no others".to_owned());
    }
    let domain = match email.domain() {
        ascii if ascii.is_ascii() => ascii.to_owned(),
        other => idna::domain_to_ascii_strict(other).map_err(|error| error.to_string())?,
    };
    let email = Address::new(email.user(), domain).map_err(|error| error.to_string())?;
    Ok(Mailbox { name, email })
}
