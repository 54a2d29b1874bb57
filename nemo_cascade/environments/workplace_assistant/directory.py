"""The company's address book."""

from nemo_cascade.environments.workplace_assistant.search import Refused, compiled


def find_email_address(office, /, name=""):
    if name == "":
        raise Refused("Say whose address you want: name is empty.")
    search = compiled(name.lower()).search
    return [address for address in office.directory if search(address)]


TOOLS = {"company_directory_find_email_address": find_email_address}
