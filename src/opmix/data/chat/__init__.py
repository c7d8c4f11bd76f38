"""Conversations: read, rendered with a chat template, tokenised with a mask of what is supervised, and made into rows."""
