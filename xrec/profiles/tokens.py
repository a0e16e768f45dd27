"""Tokens estimated from characters, for rate limits and forecasts where no tokenizer is at hand."""

# A byte-pair vocabulary gives English about four bytes a token; other scripts take two to four bytes a character and
# about a token each, so counting bytes stays near for them where counting characters would not.
_BYTES_PER_TOKEN = 4
# What a chat template puts around a message: its role and its delimiters.
TOKENS_PER_MESSAGE = 4


def estimate_tokens(text: str) -> int:
    """Tokens of a text: its UTF-8 bytes divided by four, rounded up."""
    return -(-len(text.encode("utf-8", errors="surrogatepass")) // _BYTES_PER_TOKEN)


def estimate_message_tokens(messages: list[dict[str, str]]) -> int:
    """Tokens of a chat's messages, what the template adds to each included."""
    return sum(estimate_tokens(message["content"]) + TOKENS_PER_MESSAGE for message in messages)
