"""The policies that come with hwsim: one file a policy, the file name is the policy name; plug-ins without privileges."""
