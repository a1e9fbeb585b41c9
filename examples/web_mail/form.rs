//! The mail that somebody has written, as a form sends it.

use lettre::Message;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, SinglePart};
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
                // Browsers send the ends of lines as CRLF; the longest text is counted as they show it.
                "text" => form.text = value.replace("\r\n", "\n"),
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
        // The end of a line would be the beginning of a header of one's own.
        if form.subject.chars().any(char::is_control) {
            return Err(Problem::new("subject", "one line of text"));
        }
        Ok(form)
    }

    pub(crate) fn message(&self, from: &Mailbox) -> Result<Message, Problem> {
        let to: Mailbox =
            self.to.parse().map_err(|_| Problem::new("to", "an address such as ann@example.org, and one only"))?;
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
