"""The paper broker: plays a party outside the house, speaks Alpaca's wire, and misbehaves on request."""
