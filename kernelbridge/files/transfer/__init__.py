"""What carries out a plan: on the host, by rsync and by SFTP, and here."""
