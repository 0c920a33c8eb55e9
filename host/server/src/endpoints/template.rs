//! Reads how a chat becomes a prompt: `chat_template_kwargs`, `add_generation_prompt` and
//! `continue_final_message`, as vLLM's clients know them.

use interlock_text::{ChatOptions, PromptEnd, TemplateVariables, VariablesError};

use super::common_fields;
use super::fields::RequestFields;
use super::json::FieldValue;
use crate::failure::InvalidRequest;

pub(super) fn parse(body: &RequestFields<'_>) -> Result<ChatOptions, InvalidRequest> {
    let variables = body.get("chat_template_kwargs").map(|item| variables(&item)).transpose()?;
    Ok(ChatOptions { end: end(body)?, variables: variables.unwrap_or_default() })
}

/// A message that is continued leaves no place for the beginning of another, which is the default.
fn end(body: &RequestFields<'_>) -> Result<PromptEnd, InvalidRequest> {
    let continued = common_fields::flag(body, "continue_final_message")?;
    let Some(prompt) = body.get("add_generation_prompt") else {
        return Ok(match continued {
            true => PromptEnd::WithinLastMessage,
            false => PromptEnd::GenerationPrompt,
        });
    };
    match (continued, prompt.boolean()?) {
        (false, true) => Ok(PromptEnd::GenerationPrompt),
        (false, false) => Ok(PromptEnd::LastMessage),
        (true, false) => Ok(PromptEnd::WithinLastMessage),
        (true, true) => {
            Err(prompt.wrong_value("false or absent when continue_final_message is true"))
        }
    }
}

fn variables(item: &FieldValue<'_>) -> Result<TemplateVariables, InvalidRequest> {
    TemplateVariables::parse(item.raw().get()).map_err(|why| match why {
        VariablesError::NoObject => item.wrong_type(&why.to_string()),
        why => item.wrong_value(&why.to_string()),
    })
}
