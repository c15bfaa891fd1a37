"""The template bank."""

from vessa_server.bank.template_bank import BankError, Template, TemplateBank

__all__ = ["BankError", "Template", "TemplateBank"]
