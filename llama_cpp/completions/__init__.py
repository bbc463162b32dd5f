"""From a request to an answer in OpenAI's form."""
