"""What a site's officer decides by: what would leave, what it tells, and what attacks find."""
