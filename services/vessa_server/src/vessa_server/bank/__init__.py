"""The template bank."""

from vessa_server.bank.banks import Banks
from vessa_server.bank.errors import BankError, BankFullError
from vessa_server.bank.template import Template, TemplateEntry
from vessa_server.bank.template_bank import TemplateBank

__all__ = ["BankError", "BankFullError", "Banks", "Template", "TemplateBank", "TemplateEntry"]
